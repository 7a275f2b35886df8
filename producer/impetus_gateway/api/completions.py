"""`POST /v1/completions`: texts that go on. Source: https://platform.openai.com/docs/api-reference/completions"""

from __future__ import annotations

from typing import TYPE_CHECKING

from impetus_producer.bodies.completions import ENDPOINT as ENDPOINT
from impetus_producer.bodies.completions import (
    CompletionsBody,
    TextChunks,
    completion_payload,
    completion_payloads,
    text_completion,
    usage_chunk,
)
from impetus_producer.enqueueing.parsing import parse_request

from ..entry.answers import json_answer
from ..events import event, merged
from ..submitting import Order, accepted, generated, submit, submit_all, wants_no_wait
from .chats import spoken, streamed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from starlette.responses import Response

    from ..gateway import Call


async def completions(call: Call) -> Response:
    """A job for each prompt, all on the queue at once."""
    fields = call.json()
    body = parse_request(CompletionsBody, fields)
    if wants_no_wait(call):
        return accepted(await submit(call, Order("generation", completion_payload(body, fields), ENDPOINT)))
    payloads = completion_payloads(body, fields)
    job_ids = await submit_all(call, Order("generation", payloads[0], ENDPOINT), payloads)
    if body.stream:
        return await streamed(call, job_ids, _spoken(call, body, job_ids))
    answer = text_completion(await generated(call, job_ids), job_ids[0])
    return json_answer(answer, headers={"X-Job-Id": ", ".join(job_ids)})


async def _spoken(call: Call, body: CompletionsBody, job_ids: Sequence[str]) -> AsyncGenerator[bytes, None]:
    """Of all prompts at once, and with `include_usage` what they took together."""
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    model = body.model or call.gateway.watch.default_model("generation")
    several = [TextChunks(job_ids[0], model, with_usage, at * body.n) for at in range(len(job_ids))]
    said = merged([spoken(call, job_id, chunks) for job_id, chunks in zip(job_ids, several, strict=True)])
    try:
        async for each in said:
            yield each
    finally:
        await said.aclose()
    if with_usage:
        yield event(usage_chunk(several))
