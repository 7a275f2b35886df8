"""Embeddings that were computed before, out of a store: `impetus serve --store`. A store in trouble is done without."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from impetus_producer.errors import ImpetusError

from .submitting import embedded, submit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from impetus_producer.bulk.recall import Recall, Recalled
    from impetus_producer.contract import EmbeddingResult

    from .gateway import Call
    from .submitting import Order

_WITHOUT_S = 10.0
"""So long a store is not asked that was in trouble."""
_log = logging.getLogger(__name__)


class Recalling:
    """A store asked in threads, which raises nothing."""

    def __init__(self, recall: Recall) -> None:
        self._recall = recall
        self._not_before = 0.0

    async def look(self, payload: Mapping[str, Any]) -> Recalled | None:
        if time.monotonic() < self._not_before:
            return None
        try:
            return await asyncio.to_thread(self._recall.look, payload)
        except ImpetusError as error:
            self._do_without(error)
            return None

    async def keep(self, payload: Mapping[str, Any], recalled: Recalled, result: EmbeddingResult) -> None:
        try:
            await asyncio.to_thread(self._recall.keep, payload, recalled, result)
        except ImpetusError as error:
            self._do_without(error)

    def _do_without(self, error: ImpetusError) -> None:
        _log.warning("The store is done without for %.0f s: %s", _WITHOUT_S, error)
        self._not_before = time.monotonic() + _WITHOUT_S


async def embed_or_recall(call: Call, order: Order) -> tuple[str | None, EmbeddingResult]:
    """The answer to a request that is waited for, and the id of the job that computed it or a part; None where nothing
    had to be computed. Raises as `submit` and `embedded` do.
    """
    recalling = call.gateway.recalling
    # Who names a request by a key expects one job of all of it.
    named = "idempotency-key" in call.request.headers
    recalled = None if recalling is None or named else await recalling.look(order.payload)
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
