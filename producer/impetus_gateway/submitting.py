"""A request as a job: put on its queue once, however often it is sent, and waited for while its client is there."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from impetus_producer import contract
from impetus_producer.errors import ImpetusError

from .entry.answers import json_answer
from .events import HungUpError, together, unless_gone
from .naming import check_same, digest_of, name_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from starlette.responses import Response

    from impetus_producer.asynchronous import AsyncEmbeddingHandle, AsyncGenerationHandle, AsyncRerankHandle
    from impetus_producer.contract import EmbeddingResult, GenerationResult, RerankResult

    from .gateway import Call

    Handle: TypeAlias = AsyncEmbeddingHandle | AsyncGenerationHandle | AsyncRerankHandle

T = TypeVar("T")
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

    A request that its caller named is one job, however often it is sent. Raises `HttpError`: 429, 503, 404 for a model
    that nobody serves, 409 and 422 where the name came with another request before.
    """
    (job_id,) = await submit_all(call, order, [order.payload])
    return job_id


async def submit_all(call: Call, order: Order, payloads: Sequence[Mapping[str, Any]]) -> list[str]:
    """As `submit`, of a request that takes several jobs, which differ from that of `order` in their payloads alone."""
    gateway, later = call.gateway, wants_no_wait(call)
    queue, bulk_queue = contract.ROLE_QUEUES[order.role]
    if later:
        gateway.watch.check_bulk_backlog(bulk_queue)
    else:
        gateway.watch.check_served(queue)
        gateway.watch.check_backlog(queue)
    gateway.watch.check_model(queue, order.payload.get("model"))
    goes_to = bulk_queue if later else queue
    name, meta = name_of(call), _meta(call, order)
    by_id = dict(zip(name.job_ids(call, order.endpoint, goes_to, len(payloads)), payloads, strict=True))
    if name.is_given:
        meta["digest"] = digest_of(call, order.endpoint, payloads)
        await check_same(call, name, by_id, meta["digest"])
    options = replace(gateway.producer.options, meta=meta)
    if not later and not name.is_given:
        options = replace(options, result_ttl_s=_ANSWERED_TTL_S, failure_ttl_s=_ANSWERED_FAILURE_TTL_S)
        if order.role == "generation":
            by_id = {job_id: {**payload, "cancel_if_abandoned": True} for job_id, payload in by_id.items()}
    await gateway.producer.enqueue(goes_to, contract.ROLE_FUNCTIONS[order.role], by_id, options)
    gateway.watch.sent(goes_to, len(by_id))
    if name.is_given:
        # Another of this name may have come between.
        await check_same(call, name, by_id, meta["digest"])
    return list(by_id)


def accepted(job_id: str) -> Response:
    """The answer to `Prefer: respond-async`: 202, and the place where to look for the result."""
    place = f"/v1/jobs/{job_id}"
    return json_answer(
        {"id": job_id, "object": "job", "status": "queued", "url": place},
        202,
        {"Location": place, "Preference-Applied": "respond-async", "X-Job-Id": job_id},
    )


def embedding_handle(call: Call, job_id: str) -> AsyncEmbeddingHandle:
    return call.gateway.producer.of(job_id).embedding_handle(job_id)


def generation_handle(call: Call, job_id: str) -> AsyncGenerationHandle:
    return call.gateway.producer.of(job_id).generation_handle(job_id)


def rerank_handle(call: Call, job_id: str) -> AsyncRerankHandle:
    return call.gateway.producer.of(job_id).rerank_handle(job_id)


async def embedded(call: Call, job_id: str) -> EmbeddingResult:
    """The job's result, for as long as its client waits for it. Raises `HungUpError`, having cancelled the job."""
    handle = embedding_handle(call, job_id)
    result = await while_there(call, [handle], handle.result(call.gateway.settings.request_timeout_s))
    call.gateway.metrics.embedded(result)
    return result


async def generated(call: Call, job_ids: Sequence[str]) -> list[GenerationResult]:
    """As `embedded`, of all the jobs that a request took."""
    handles = [generation_handle(call, job_id) for job_id in job_ids]
    timeout_s = call.gateway.settings.request_timeout_s
    results = await while_there(call, handles, together([handle.result(timeout_s) for handle in handles]))
    for result in results:
        call.gateway.metrics.generated(result)
    return results


async def reranked(call: Call, job_id: str) -> RerankResult:
    """As `embedded`."""
    handle = rerank_handle(call, job_id)
    result = await while_there(call, [handle], handle.result(call.gateway.settings.request_timeout_s))
    call.gateway.metrics.reranked(result)
    return result


async def while_there(call: Call, handles: Sequence[Handle], work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, which waits for these jobs. They are withdrawn where the client is gone, the time over, or
    nothing comes of one.
    """
    try:
        return await unless_gone(call.request.receive, work)
    except (HungUpError, ImpetusError, asyncio.CancelledError):
        withdraw(call, handles)
        raise


def withdraw(call: Call, handles: Sequence[Handle]) -> None:
    """Cancels jobs whose client is gone, unless it named them, by which they are asked for again."""
    if not name_of(call).is_given:
        for handle in handles:
            call.gateway.afterwards(handle.cancel())


def forget(call: Call, handle: Handle) -> None:
    """Frees what Redis keeps of a job whose answer was sent, unless the same may be asked for again."""
    if not name_of(call).is_given:
        call.gateway.afterwards(handle.delete())


def _meta(call: Call, order: Order) -> dict[str, Any]:
    meta: dict[str, Any] = {"owner": call.caller.name, "endpoint": order.endpoint, "wants": dict(order.wants)}
    trace = call.request.headers.get("traceparent", "")
    if _TRACEPARENT.fullmatch(trace):
        meta["traceparent"] = trace
    return meta
