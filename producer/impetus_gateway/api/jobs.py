"""`/v1/jobs/{id}`: jobs that nobody waits for on an open connection; and all jobs, for whoever operates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from impetus_producer.bodies import completions
from impetus_producer.bodies.completions import TextChunks, text_completion
from impetus_producer.bodies.reranking import ranking
from impetus_producer.chat_completions import ChatChunks, chat_completion
from impetus_producer.contract import EmbeddingResult, RerankResult
from impetus_producer.errors import ImpetusError, ResultTimeoutError
from impetus_producer.operations import retry
from impetus_producer.watching.records import JobRecord, read_record

from ..entry.answers import json_answer
from ..entry.callers import Role
from ..entry.errors import HttpError, http_error
from ..events import EventStream, event, told
from ..submitting import generation_handle
from . import ollama
from .embeddings import in_openais_words

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.responses import Response

    from ..gateway import Call
    from ..submitting import Handle

ENDPOINT = "/v1/jobs/{id}"
EVENTS = "/v1/jobs/{id}/events"
RETRY = "/v1/jobs/{id}/retry"
_READ_WITHIN_S = 10.0


async def show(call: Call) -> Response:
    """The job: where it stands, and its result or error once it is over."""
    record = await _own(call)
    shown = _shown(record)
    if record.status == "finished":
        shown["result"] = await _result(call, record)
    elif record.status == "failed":
        shown["error"] = await _error(call, record)
    return json_answer(shown)


async def cancel(call: Call) -> Response:
    """Cancels it, unless it is over. 202 where it runs on for a moment."""
    record = await _own(call)
    try:
        cancelled = await _handle(call, record).cancel(timeout_s=_READ_WITHIN_S)
    except ResultTimeoutError:
        return json_answer(_shown(record) | {"cancelled": False}, 202)
    now = await call.gateway.ask(read_record, record.job_id) or record
    return json_answer(_shown(now) | {"cancelled": cancelled})


async def again(call: Call) -> Response:
    """Puts a job that failed on its queue again."""
    record = await _own(call)
    if not await call.gateway.ask(retry, record.job_id):
        raise HttpError(409, f"the job is {record.stands}: only one that failed is tried again", code="not_failed")
    return json_answer(_shown(record) | {"status": "queued"})


async def events(call: Call) -> Response:
    """Server-sent events: `status`, then `chunk`s of a generation while it is made, and one `result` or `error`."""
    record = await _own(call)
    return EventStream(told(_events(call, record), "error"), call.gateway.settings.ping_s)


async def _events(call: Call, record: JobRecord) -> AsyncGenerator[bytes, None]:
    yield event(_shown(record), "status")
    if record.role == "generation" and record.status != "finished":
        chunks = _chunks(record)
        async for delta in generation_handle(call, record.job_id).deltas():
            for chunk in chunks.said(delta):
                yield event(chunk, "chunk")
    else:
        await _handle(call, record).result()
    ended = await call.gateway.ask(read_record, record.job_id) or record
    yield event(_shown(ended) | {"result": await _result(call, ended)}, "result")


async def _own(call: Call) -> JobRecord:
    """The job that is asked for. Raises `HttpError` 404 where there is none that this caller may see."""
    job_id = str(call.request.path_params["id"])
    record = await call.gateway.ask(read_record, job_id)
    if record is None or not (call.may(Role.OPERATE) or record.meta.get("owner") == call.caller.name):
        raise HttpError(404, f"there is no job {job_id[:100]!r}, or its time to live ran out", code="job_not_found")
    return record


def _handle(call: Call, record: JobRecord) -> Handle:
    return call.gateway.producer.of(record.job_id).handle_for(record.role, record.job_id)


def _shown(record: JobRecord) -> dict[str, Any]:
    return {
        "id": record.job_id,
        "object": "job",
        "status": record.stands,
        "endpoint": _endpoint(record),
        "queue": record.queue,
        "created_at": record.created_at or None,
        "started_at": record.started_at or None,
        "ended_at": record.ended_at or None,
    }


def _endpoint(record: JobRecord) -> str | None:
    endpoint = record.meta.get("endpoint")
    return endpoint if isinstance(endpoint, str) else None


def _chunks(record: JobRecord) -> ChatChunks | TextChunks:
    if _endpoint(record) == completions.ENDPOINT:
        return TextChunks(record.job_id, "", with_usage=False)
    return ChatChunks(record.job_id)


async def _result(call: Call, record: JobRecord) -> Any:
    """What the endpoint that was asked would have answered."""
    result = await _handle(call, record).result(_READ_WITHIN_S)
    endpoint = _endpoint(record)
    if isinstance(result, RerankResult):
        return ranking(result, record.job_id)
    if not isinstance(result, EmbeddingResult):
        if endpoint == completions.ENDPOINT:
            return text_completion([result], record.job_id)
        return chat_completion(result, record.job_id)
    if endpoint in (ollama.EMBED, ollama.EMBEDDINGS):
        return from_json(await ollama.in_ollamas_words(result, endpoint))
    wants = record.meta.get("wants")
    wanted = wants.get("encoding_format") if isinstance(wants, dict) else None
    return from_json(await in_openais_words(result, "base64" if wanted == "base64" else "float"))


async def _error(call: Call, record: JobRecord) -> Any:
    try:
        await _handle(call, record).result(_READ_WITHIN_S)
    except ImpetusError as error:
        return http_error(error).body()["error"]
    return None
