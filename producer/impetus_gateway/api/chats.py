"""`POST /v1/chat/completions`. Source: https://platform.openai.com/docs/api-reference/chat"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from impetus_producer.bodies.chats import ENDPOINT as ENDPOINT
from impetus_producer.bodies.chats import chat_payload
from impetus_producer.chat_completions import ChatChunks, chat_completion
from impetus_producer.errors import ImpetusError

from ..entry.answers import json_answer
from ..events import DONE, EventStream, begun, event, told
from ..submitting import (
    Order,
    accepted,
    forget,
    generated,
    generation_handle,
    submit,
    wants_no_wait,
    while_there,
    withdraw,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence
    from typing import Protocol

    from starlette.responses import Response

    from impetus_producer.contract import GenerationResult
    from impetus_producer.streams import Delta

    from ..gateway import Call

    class Chunks(Protocol):
        """Makes the chunks of a stream of what a job says."""

        def said(self, delta: Delta) -> Iterator[dict[str, Any]]: ...
        def ended(self, result: GenerationResult) -> Iterator[dict[str, Any]]: ...


async def chat(call: Call) -> Response:
    request, payload = chat_payload(call.json())
    job_id = await submit(call, Order("generation", payload, ENDPOINT))
    if wants_no_wait(call):
        return accepted(job_id)
    if request.stream:
        usage = request.stream_options is not None and request.stream_options.include_usage
        model = request.model or call.gateway.watch.default_model("generation")
        chunks = ChatChunks(job_id, model=model, include_usage=usage)
        return await streamed(call, [job_id], spoken(call, job_id, chunks))
    (result,) = await generated(call, [job_id])
    return json_answer(chat_completion(result, job_id), headers={"X-Job-Id": job_id})


async def streamed(call: Call, job_ids: Sequence[str], said: AsyncGenerator[bytes, None]) -> EventStream:
    """The stream of what these jobs say, begun: what is wrong with them at once is raised."""
    settings, handles = call.gateway.settings, [generation_handle(call, job_id) for job_id in job_ids]

    async def to_the_end() -> AsyncGenerator[bytes, None]:
        try:
            async for each in said:
                yield each
        except ImpetusError:
            withdraw(call, handles)
            raise
        finally:
            await said.aclose()
        yield DONE
        for handle in handles:
            forget(call, handle)

    events = await while_there(call, handles, begun(to_the_end(), settings.ping_s))
    headers = {"X-Job-Id": ", ".join(job_ids)}
    return EventStream(told(events), settings.ping_s, lambda: withdraw(call, handles), headers=headers)


async def spoken(call: Call, job_id: str, chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """Events for all that a job says, and how it ended."""
    gateway, handle = call.gateway, generation_handle(call, job_id)
    timeout_s = gateway.settings.request_timeout_s
    async for delta in handle.deltas(timeout_s):
        call.watch.token()
        for chunk in chunks.said(delta):
            yield event(chunk)
    result = await handle.result(timeout_s)
    gateway.metrics.generated(result)
    gateway.metrics.streamed(result, call.watch.first_token_s or call.watch.seconds(), call.watch.seconds())
    for chunk in chunks.ended(result):
        yield event(chunk)
