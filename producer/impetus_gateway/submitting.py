"""A request as a job: put on its queue once, however often it is sent, and waited for while its client is there."""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pydantic_core import to_json

from impetus_producer import contract, jobs
from impetus_producer.errors import ResultTimeoutError
from impetus_producer.records import read_record

from .entry.answers import json_answer
from .entry.errors import HttpError
from .events import HungUpError, unless_gone

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from starlette.responses import Response

    from impetus_producer.asynchronous import AsyncEmbeddingHandle, AsyncGenerationHandle, AsyncRerankHandle
    from impetus_producer.contract import EmbeddingResult, GenerationResult, RerankResult

    from .gateway import Call

    Handle: TypeAlias = AsyncEmbeddingHandle | AsyncGenerationHandle | AsyncRerankHandle

T = TypeVar("T")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.{0,100})?")
_ANSWERED_TTL_S = 60
"""So long a result stays whose client waited for it; any other stays for as long as the producer says."""
_ANSWERED_FAILURE_TTL_S = 3600


@dataclass(frozen=True, slots=True)
class Order:
    """A job to be made of a request that was checked."""

    role: str
    payload: Mapping[str, Any]
    endpoint: str
    """The path that was asked, by which the result is shown later."""
    wants: Mapping[str, Any] = field(default_factory=dict)
    """What else its result is shown by."""


def wants_no_wait(call: Call) -> bool:
    """Whether the request says `Prefer: respond-async` (RFC 7240)."""
    wishes = ",".join(call.request.headers.getlist("prefer")).split(",")
    return any(wish.partition(";")[0].strip().lower() == "respond-async" for wish in wishes)


async def submit(call: Call, order: Order) -> str:
    """Puts the job on its queue and returns its id. Nobody waits for one of `Prefer: respond-async`: it goes behind
    those that somebody waits for, and is taken though no worker is there.

    With an `Idempotency-Key` the same request of the same caller is one job, and its id the same. Raises `HttpError`:
    429, 503, 404 for a model that nobody serves, 422 where the key came with another request before.
    """
    gateway, later = call.gateway, wants_no_wait(call)
    lanes = contract.ROLE_QUEUES[order.role]
    if later:
        gateway.watch.check_bulk_backlog(lanes[1])
    else:
        gateway.watch.check_served(lanes[0])
        gateway.watch.check_backlog(lanes[0])
    gateway.watch.check_model(lanes[0], order.payload.get("model"))
    key = _idempotency_key(call)
    job_id = jobs.new_id() if key is None else _job_id(call, order, key)
    options = replace(gateway.producer.options, meta=_meta(call, order, key))
    payload = dict(order.payload)
    if not later and key is None:
        options = replace(options, result_ttl_s=_ANSWERED_TTL_S, failure_ttl_s=_ANSWERED_FAILURE_TTL_S)
        if order.role == "generation":
            payload["cancel_if_abandoned"] = True
    queue = lanes[later]
    await gateway.producer.enqueue(queue, contract.ROLE_FUNCTIONS[order.role], {job_id: payload}, options)
    gateway.watch.sent(queue)
    if key is not None:
        await _check_same(call, job_id, options.meta["digest"])
    return job_id


def accepted(job_id: str) -> Response:
    """The answer to `Prefer: respond-async`: 202, and the place where to look for the result."""
    place = f"/v1/jobs/{job_id}"
    return json_answer(
        {"id": job_id, "object": "job", "status": "queued", "url": place},
        202,
        {"Location": place, "Preference-Applied": "respond-async", "X-Job-Id": job_id},
    )


def embedding_handle(call: Call, job_id: str) -> AsyncEmbeddingHandle:
    return call.gateway.producer.embedding_handle(job_id)


def generation_handle(call: Call, job_id: str) -> AsyncGenerationHandle:
    return call.gateway.producer.generation_handle(job_id)


def rerank_handle(call: Call, job_id: str) -> AsyncRerankHandle:
    return call.gateway.producer.rerank_handle(job_id)


async def embedded(call: Call, job_id: str) -> EmbeddingResult:
    """The job's result, for as long as its client waits for it. Raises `HungUpError`, having cancelled the job."""
    handle = embedding_handle(call, job_id)
    result = await while_there(call, handle, handle.result(call.gateway.settings.request_timeout_s))
    call.gateway.metrics.embedded(result)
    return result


async def generated(call: Call, job_id: str) -> GenerationResult:
    """As `embedded`."""
    handle = generation_handle(call, job_id)
    result = await while_there(call, handle, handle.result(call.gateway.settings.request_timeout_s))
    call.gateway.metrics.generated(result)
    return result


async def reranked(call: Call, job_id: str) -> RerankResult:
    """As `embedded`."""
    handle = rerank_handle(call, job_id)
    result = await while_there(call, handle, handle.result(call.gateway.settings.request_timeout_s))
    call.gateway.metrics.reranked(result)
    return result


async def while_there(call: Call, handle: Handle, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, which waits for a job. The job is withdrawn where the client is gone, or the time over."""
    try:
        return await unless_gone(call.request.receive, work)
    except (HungUpError, ResultTimeoutError, asyncio.CancelledError):
        withdraw(call, handle)
        raise


def withdraw(call: Call, handle: Handle) -> None:
    """Cancels the job of a client that is gone, unless it has an `Idempotency-Key`, by which it is asked for again."""
    if _idempotency_key(call) is None:
        call.gateway.afterwards(handle.cancel())


def forget(call: Call, handle: Handle) -> None:
    """Frees what Redis keeps of a job whose answer was sent, unless the same may be asked for again."""
    if _idempotency_key(call) is None:
        call.gateway.afterwards(handle.delete())


def _idempotency_key(call: Call) -> str | None:
    key = call.request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise HttpError(
            400, "an Idempotency-Key is 1 to 255 visible ASCII characters", param="Idempotency-Key", code="bad_header"
        )
    return key


def _job_id(call: Call, order: Order, key: str) -> str:
    named = "\0".join((call.caller.name, order.endpoint, key))
    return hashlib.sha256(named.encode()).hexdigest()[:32]


def _meta(call: Call, order: Order, key: str | None) -> dict[str, Any]:
    meta: dict[str, Any] = {"owner": call.caller.name, "endpoint": order.endpoint, "wants": dict(order.wants)}
    if key is not None:
        meta["digest"] = hashlib.sha256(to_json(dict(sorted(order.payload.items())))).hexdigest()
    trace = call.request.headers.get("traceparent", "")
    if _TRACEPARENT.fullmatch(trace):
        meta["traceparent"] = trace
    return meta


async def _check_same(call: Call, job_id: str, digest: str) -> None:
    record = await call.gateway.ask(read_record, job_id)
    if record is not None and record.meta.get("digest") != digest:
        raise HttpError(
            422, "this Idempotency-Key came with another request before", param="Idempotency-Key",
            code="idempotency_key_reused",
        )  # fmt: skip
