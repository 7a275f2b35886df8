"""The functions of one package, loaded: rows into buckets, buckets through the device, vectors back in order."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from impetus_backends.embedding.devices.operations import INPUTS
from impetus_backends.embedding.devices.packages.buckets import Call, plan
from impetus_backends.embedding.devices.packages.form import input_shapes, lay
from impetus_backends.embedding.encoder import pad
from impetus_backends.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from impetus_backends.embedding.devices.packages.buckets import Bucket, Costs
    from impetus_backends.embedding.devices.packages.device import Predictor
    from impetus_backends.embedding.folder.config import EmbeddingConfig

_RING = 4
"""Core ML has been seen to read its input after predict returned: so many calls lie between two uses."""
_LEAST_AGREEMENT = 0.999


@dataclass(frozen=True, slots=True)
class Timing:
    """What the calls of one bucket took so far."""

    calls: int = 0
    rows: int = 0
    seconds: float = 0.0

    def after(self, rows: int, seconds: float) -> Timing:
        return Timing(self.calls + 1, self.rows + rows, self.seconds + seconds)


class Runner:
    """Runs token rows through the loaded functions, by bucket. One thread uses it."""

    def __init__(self, config: EmbeddingConfig, functions: Mapping[Bucket, Predictor]) -> None:
        self.timings = {bucket: Timing() for bucket in functions}
        self._config = config
        self._functions = dict(functions)
        self._costs: Costs | None = None
        """In seconds, once they are measured."""
        self._rings = {bucket: cycle([_inputs(config, bucket) for _ in range(_RING)]) for bucket in functions}

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The vectors of token rows, in their order; raises `RequestError` for a row that the model cannot read."""
        if not rows:
            pad(self._config, rows)
        vectors = np.empty((len(rows), self._config.dimensions), dtype=np.float32)
        for call in plan([len(row) for row in rows], tuple(self._functions), self._costs):
            vectors[list(call.rows)] = self._run(call, rows)
        return vectors

    def _run(self, call: Call, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The vectors of the rows that the call takes, in its order."""
        bucket, batch = call.bucket, lay(self._config, call, rows)
        inputs = next(self._rings[bucket])
        for name in inputs:
            np.copyto(inputs[name], getattr(batch, name))
        started = time.perf_counter()
        made = self._functions[bucket](inputs)
        self.timings[bucket] = self.timings[bucket].after(len(call.rows), time.perf_counter() - started)
        if made.shape != (bucket.most, self._config.dimensions):
            raise BackendError(
                f"the bucket {bucket} returned {made.shape} and not ({bucket.most}, "
                f"{self._config.dimensions}): the device has dropped or merged rows"
            )
        return made[call.places]

    def check(self) -> dict[Bucket, float]:
        """Runs every bucket, full: row by row it must agree with the longest, which the golden check has compared. By
        these times rows are given to buckets from then on.

        Core ML has been seen to make one row of a batch. And a first call is slow, so none should be left to a job.
        Returns the seconds of a later call, by bucket. Raises `BackendError` with the figures.
        """
        longest = max(self._functions, key=lambda bucket: (not bucket.packed, bucket.length, -bucket.batch))
        random = np.random.default_rng(1)
        took = {}
        for bucket in self._functions:
            sizes = np.linspace(bucket.length // bucket.texts, min(3, bucket.length // bucket.texts), bucket.most)
            rows = [random.integers(0, self._config.encoder.vocab_size, int(size), dtype=np.int32) for size in sizes]
            starts = range(0, len(rows), bucket.texts)
            whole = Call(bucket, tuple(tuple(range(start, start + bucket.texts)) for start in starts))
            together = self._run(whole, rows)
            started = time.perf_counter()
            self._run(whole, rows)
            took[bucket] = time.perf_counter() - started
            for row in {0, len(rows) // 2, len(rows) - 1}:
                alone = self._run(Call(longest, ((row,),)), rows)[0]
                lengths = np.linalg.norm(alone) * np.linalg.norm(together[row])
                cosine = float(alone @ together[row] / max(lengths, 1e-12))
                if not cosine >= _LEAST_AGREEMENT:
                    raise BackendError(
                        f"the buckets {bucket} and {longest} disagree on the same text: cosine {cosine:.6f}, and "
                        f"{_LEAST_AGREEMENT} is needed"
                    )
        self.timings = {bucket: Timing() for bucket in self._functions}
        self._costs = took
        return took


def _inputs(config: EmbeddingConfig, bucket: Bucket) -> dict[str, np.ndarray]:
    shapes = input_shapes(config, bucket)
    return {name: np.ones(shapes[name], np.int32 if index < 2 else np.float32) for index, name in enumerate(INPUTS)}
