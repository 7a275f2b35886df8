"""An answer to a request for embeddings: out of the store, from a job, or of both."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .submitting import embedded, submit

if TYPE_CHECKING:
    from impetus_producer.bulk.recall import Recalled
    from impetus_producer.contract import EmbeddingResult

    from .gateway import Call
    from .submitting import Order


async def embed_or_recall(call: Call, order: Order) -> tuple[str | None, EmbeddingResult]:
    """The answer to a request that is waited for, and the id of the job that computed it or a part; None where nothing
    had to be computed. Raises as `submit` and `embedded` do.
    """
    recalling = call.gateway.recalling
    # Who names a request by a key expects one job of all of it. Of sparse vectors nothing is kept.
    named = "idempotency-key" in call.request.headers
    kept = order.payload.get("output") != "sparse"
    recalled = None if recalling is None or named or not kept else await recalling.look(order.payload)
    if recalling is None or recalled is None:
        job_id = await submit(call, order)
        return job_id, await embedded(call, job_id)
    if not recalled.missing:
        return None, recalled.whole(None)
    job_id, result = await _compute(call, order, recalled)
    if not recalled.fits(result):
        recalled = replace(recalled, found={})
        job_id, result = await _compute(call, order, recalled)
    call.gateway.afterwards(recalling.keep(order.payload, recalled, result))
    return job_id, recalled.whole(result)


async def _compute(call: Call, order: Order, recalled: Recalled) -> tuple[str, EmbeddingResult]:
    job_id = await submit(call, replace(order, payload={**order.payload, "input": recalled.missing}))
    return job_id, await embedded(call, job_id)
