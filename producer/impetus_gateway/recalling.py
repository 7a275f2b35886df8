"""Embeddings that were computed before, out of a store: `impetus serve --store`. A store in trouble is done without."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from impetus_producer.errors import ImpetusError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from impetus_producer.bulk.recall import Recall, Recalled
    from impetus_producer.contract import EmbeddingResult

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
