"""The functions of one package, loaded: rows into buckets, buckets through the device, vectors back in order.

Calls of one bucket go to the device two together, where that was found to be right and no slower: so it has the next
ready while one runs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from impetus_backends.embedding.devices.operations import INPUTS
from impetus_backends.embedding.devices.packages.buckets import MOST_CALL_TOKENS, Call, plan
from impetus_backends.embedding.devices.packages.device import IN_FLIGHT
from impetus_backends.embedding.devices.packages.form import input_shapes, lay
from impetus_backends.embedding.encoder import pad
from impetus_backends.embedding.lines import line_of
from impetus_backends.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from impetus_backends.embedding.devices.packages.buckets import Bucket, Costs
    from impetus_backends.embedding.devices.packages.device import Predictor
    from impetus_backends.embedding.folder.config import EmbeddingConfig

_RING = 4
"""Core ML has been seen to read its input after predict returned: before an array is written to again, so many times
others are used."""
_LEAST_AGREEMENT = 0.999
_RUNS = 2
"""Of each call that is timed."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What the calls of one bucket took so far."""

    calls: int = 0
    rows: int = 0
    seconds: float = 0.0

    def after(self, calls: Sequence[Call], seconds: float) -> Timing:
        rows = sum(len(call.rows) for call in calls)
        return Timing(self.calls + len(calls), self.rows + rows, self.seconds + seconds)


class Runner:
    """Runs token rows through the loaded functions, by bucket. One thread uses it."""

    def __init__(
        self,
        config: EmbeddingConfig,
        functions: Mapping[Bucket, Predictor],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.timings = {bucket: Timing() for bucket in functions}
        self.call_tokens: float | None = None
        """What a call costs beside its tokens, in tokens, once that is measured."""
        self._config = config
        self._functions = dict(functions)
        self._clock = clock
        self._costs: Costs | None = None
        """In seconds, once they are measured."""
        self._in_flight = dict.fromkeys(functions, IN_FLIGHT)
        self._rings = {
            bucket: cycle([[_inputs(config, bucket) for _ in range(IN_FLIGHT)] for _ in range(_RING)])
            for bucket in functions
        }

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The vectors of token rows, in their order; raises `RequestError` for a row that the model cannot read."""
        if not rows:
            pad(self._config, rows)
        vectors = np.empty((len(rows), self._config.dimensions), dtype=np.float32)
        by_bucket: dict[Bucket, list[Call]] = {}
        for call in plan([len(row) for row in rows], tuple(self._functions), self._costs):
            by_bucket.setdefault(call.bucket, []).append(call)
        for bucket, calls in by_bucket.items():
            size = self._in_flight[bucket]
            for some in (calls[at : at + size] for at in range(0, len(calls), size)):
                for call, made in zip(some, self._run(some, rows), strict=True):
                    vectors[list(call.rows)] = made
        return vectors

    def _run(self, calls: Sequence[Call], rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """For each of some calls of one bucket, handed over together, the vectors of its rows in its order."""
        bucket = calls[0].bucket
        given = next(self._rings[bucket])[: len(calls)]
        for call, inputs in zip(calls, given, strict=True):
            batch = lay(self._config, call, rows)
            for name in inputs:
                np.copyto(inputs[name], getattr(batch, name))
        started = self._clock()
        made = self._functions[bucket](given)
        self.timings[bucket] = self.timings[bucket].after(calls, self._clock() - started)
        if len(made) != len(calls):
            raise BackendError(f"the bucket {bucket} returned {len(made)} results of {len(calls)} calls")
        for vectors in made:
            if vectors.shape != (bucket.most, self._config.dimensions):
                raise BackendError(
                    f"the bucket {bucket} returned {vectors.shape} and not ({bucket.most}, "
                    f"{self._config.dimensions}): the device has dropped or merged rows"
                )
        return [vectors[call.places] for call, vectors in zip(calls, made, strict=True)]

    def check(self) -> dict[Bucket, float]:
        """Runs every bucket, full: row by row it must agree with the longest, which the golden check has compared. By
        these times rows are given to buckets from then on. Two calls go together where that agrees and is no slower.

        Core ML has been seen to make one row of a batch. And a first call is slow, so none should be left to a job.
        Returns the seconds of a later call, by bucket; from these `call_tokens` follows. Raises `BackendError` with the
        figures.
        """
        longest = max(self._functions, key=lambda bucket: (not bucket.packed, bucket.length, -bucket.batch))
        random = np.random.default_rng(1)
        took = {}
        for bucket in self._functions:
            sizes = np.linspace(bucket.length // bucket.texts, min(3, bucket.length // bucket.texts), bucket.most)
            rows = [
                random.integers(0, self._config.encoder.vocab_size, int(size), dtype=np.int32)
                for _ in range(IN_FLIGHT)
                for size in sizes
            ]
            starts = [tuple(range(start, start + bucket.texts)) for start in range(0, len(rows), bucket.texts)]
            calls = [Call(bucket, tuple(starts[at : at + bucket.batch])) for at in range(0, len(starts), bucket.batch)]
            expected = [self._run([call], rows)[0] for call in calls]
            for row in {0, bucket.most // 2, bucket.most - 1}:
                (alone,) = self._run([Call(longest, ((row,),))], rows)
                cosine = _least_cosine(alone, expected[0][row : row + 1])
                if not cosine >= _LEAST_AGREEMENT:
                    raise BackendError(
                        f"the buckets {bucket} and {longest} disagree on the same text: cosine {cosine:.6f}, and "
                        f"{_LEAST_AGREEMENT} is needed"
                    )
            took[bucket] = self._seconds(calls[:1], rows)
            if self._agree_together(calls, rows, expected):
                together_s = self._seconds(calls, rows) / len(calls)
                self._in_flight[bucket] = IN_FLIGHT if together_s <= took[bucket] else 1
                took[bucket] = min(together_s, took[bucket])
            else:
                self._in_flight[bucket] = 1
        self.timings = {bucket: Timing() for bucket in self._functions}
        self._costs = took
        fixed_s, token_s = line_of([(bucket.tokens, seconds) for bucket, seconds in took.items()])
        self.call_tokens = min(fixed_s / token_s, MOST_CALL_TOKENS)
        return took

    @property
    def in_flight(self) -> Mapping[Bucket, int]:
        """How many calls of each bucket go to the device together."""
        return self._in_flight

    def _agree_together(self, calls: Sequence[Call], rows: Sequence[np.ndarray], alone: Sequence[np.ndarray]) -> bool:
        try:
            made = self._run(calls, rows)
        except Exception:  # noqa: BLE001 - whatever a device raises, one call at a time it has just answered
            return False
        return all(map(_LEAST_AGREEMENT.__le__, map(_least_cosine, made, alone)))

    def _seconds(self, calls: Sequence[Call], rows: Sequence[np.ndarray]) -> float:
        took = []
        for _ in range(_RUNS):
            started = self._clock()
            self._run(calls, rows)
            took.append(self._clock() - started)
        return min(took)


def _least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(lengths, 1e-12)).min())


def _inputs(config: EmbeddingConfig, bucket: Bucket) -> dict[str, np.ndarray]:
    shapes = input_shapes(config, bucket)
    return {name: np.ones(shapes[name], np.int32 if index < 2 else np.float32) for index, name in enumerate(INPUTS)}
