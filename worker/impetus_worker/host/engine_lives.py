"""What the engine's lives, one after another, teach the worker: which backend not to try again, and when to give up.

Knows of no process: that is `engine_process`.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from impetus_backends.engine_config import Excluded

from ..errors import EngineDiedError

if TYPE_CHECKING:
    from impetus_backends.engine_config import EngineConfig
    from impetus_backends.protocol import EngineInfo

MOST_IN_A_ROW = 30
MOST_WHILE_LOADING = 2
"""A backend that ended its process so often while it was being loaded, or hung, is passed over from then on."""
LOADING_PATIENCE_S = 1800.0
"""How long a backend may load. Fetching a model does not count, and weights may lie on a slow disk far away."""
SLOW_LOADING_S = 60.0
"""Of a backend that loads for so long it is said, and jobs do not wait for it here."""
_log = logging.getLogger(__name__)


class EngineLives:
    """`config` is what the next engine is to be started with."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.deaths = 0
        self._in_a_row = 0
        """Deaths between which the engine did nothing."""
        self.tried = ""
        """The backend that is being loaded; empty for none."""
        self._while_loading: Counter[str] = Counter()
        self._fingerprint: str | None = None

    def tries(self, backend: str) -> None:
        """It is about to load this backend; an empty name: it loads nothing any more."""
        self.tried = backend

    def loaded(self, info: EngineInfo) -> bool:
        """Whether it came back as the one that it was: what another makes cannot be mixed with what it made."""
        is_same = self._fingerprint in (None, info.fingerprint)
        self._fingerprint = info.fingerprint
        return is_same

    def worked(self) -> None:
        """It did something."""
        self._in_a_row = 0

    def died(self, how: str) -> None:
        """Raises `EngineDiedError` when that was once too often."""
        self.deaths += 1
        self._in_a_row += 1
        if self.tried:
            self._while_loading[self.tried] += 1
            if self._while_loading[self.tried] >= MOST_WHILE_LOADING:
                self._exclude(self.tried, f"{how} while it was loading, {MOST_WHILE_LOADING} times")
            self.tried = ""
        if self._in_a_row > MOST_IN_A_ROW:
            raise EngineDiedError(how)

    def _exclude(self, backend: str, reason: str) -> None:
        _log.error("the backend %s is out: %s", backend, reason)
        self.config = replace(self.config, excluded=(*self.config.excluded, Excluded(backend, reason)))
