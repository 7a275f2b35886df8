"""How long the texts were that a model served here, counted in steps, and what came of looking for better shapes.

One small file a model, for any number of processes: each adds what it counted to what is there. What cannot be read
counts as nothing.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from impetus_backends.cache import write_whole
from impetus_backends.embedding.devices.packages.buckets import MOST_CALL_TOKENS, STEP

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_MOST_TEXTS = 1_000_000
"""Beyond these all counts are halved, so that what comes counts for more than what was."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Shapes that were tried last, and what came of it."""

    at: float
    """In seconds since 1970."""
    shapes: str
    said: str


class Served:
    """`fresh`: how many texts this process counted. One thread adds, another may do the rest."""

    def __init__(self, file: Path, longest: int) -> None:
        self._file = file
        self._steps = -(-longest // STEP)
        self._lock = threading.Lock()
        self._unkept = [0] * self._steps
        self._kept, self.call_tokens, self.trial = self._read()
        self.fresh = 0

    @property
    def counts(self) -> tuple[int, ...]:
        """`counts[i]` texts had more than `i * STEP` tokens and at most `(i + 1) * STEP`."""
        with self._lock:
            return tuple(map(int.__add__, self._kept, self._unkept))

    def add(self, lengths: Iterable[int]) -> None:
        """Texts of so many tokens were served."""
        with self._lock:
            for length in lengths:
                self._unkept[min((length - 1) // STEP, self._steps - 1)] += 1
                self.fresh += 1

    def keep(self, *, call_tokens: float | None = None, trial: Trial | None = None) -> None:
        """Writes down what is counted, beside what others wrote meanwhile; raises `OSError` where that cannot be, and
        then has lost nothing."""
        counts, others_cost, others_trial = self._read()
        with self._lock:
            added = list(self._unkept)
        counts = [kept + more for kept, more in zip(counts, added, strict=True)]
        while sum(counts) > _MOST_TEXTS:
            counts = [count // 2 for count in counts]
        self.call_tokens, self.trial = others_cost if call_tokens is None else call_tokens, trial or others_trial
        told = {"counts": counts, "call_tokens": self.call_tokens, "trial": self.trial and asdict(self.trial)}
        write_whole(self._file, json.dumps(told))
        with self._lock:
            self._kept = counts
            self._unkept = [count - kept for count, kept in zip(self._unkept, added, strict=True)]

    def tried_within(self, seconds: float) -> bool:
        """Whether shapes were tried since then; a time that is yet to come is a clock that was wrong."""
        return self.trial is not None and 0 <= time.time() - self.trial.at < seconds

    def _read(self) -> tuple[list[int], float | None, Trial | None]:
        try:
            told: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
            counts = [int(count) for count in told["counts"]]
            cost = None if told["call_tokens"] is None else float(told["call_tokens"])
            trial = told["trial"]
            if len(counts) != self._steps or min(counts) < 0 or sum(counts) > _MOST_TEXTS:
                raise ValueError("these are no counts of this model's texts")
            if cost is not None and not 0 <= cost <= MOST_CALL_TOKENS:
                raise ValueError("no call costs as much")
            return (
                counts,
                cost,
                Trial(float(trial["at"]), str(trial["shapes"]), str(trial["said"])) if trial else None,
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return [0] * self._steps, None, None
