"""`POST /v1/completions`: a text that goes on. Source: https://platform.openai.com/docs/api-reference/completions"""

from __future__ import annotations

from typing import TYPE_CHECKING

from impetus_producer.bodies.completions import (
    ENDPOINT as ENDPOINT,
)
from impetus_producer.bodies.completions import (
    CompletionsBody,
    TextChunks,
    completion_payload,
    text_completion,
)
from impetus_producer.parsing import parse_request

from ..entry.answers import json_answer
from ..submitting import Order, accepted, generated, submit, wants_no_wait
from .chats import streamed

if TYPE_CHECKING:
    from starlette.responses import Response

    from ..gateway import Call


async def completions(call: Call) -> Response:
    fields = call.json()
    body = parse_request(CompletionsBody, fields)
    job_id = await submit(call, Order("generation", completion_payload(body, fields), ENDPOINT))
    if wants_no_wait(call):
        return accepted(job_id)
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        model = body.model or call.gateway.watch.default_model("generation")
        return await streamed(call, job_id, TextChunks(job_id, model, with_usage))
    return json_answer(text_completion(await generated(call, job_id), job_id), headers={"X-Job-Id": job_id})
