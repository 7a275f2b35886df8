"""A model as MLX compiles it: for each shape that comes again, and only where that was seen to pay on this device.

`mx.compile` fuses what is done to each number into few kernels and makes the graph once, but once for each shape. On an
H100, with a BERT-base in float16, batches of 32,768 padded tokens took 12 to 21 % less time, those of 4,096 the same,
and those of 2,048 more; on a Mac nobody has measured it yet. So each shape decides for itself, in passing: two batches
of it run as they are, one both ways, whose vectors are held together, and two compiled; from then on the faster serves.
Source: https://ml-explore.github.io/mlx/build/html/usage/compile.html
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MOST_SHAPES = 256
"""What is made of each stays, and is small."""
_WARMED_UP, _PLAIN, _BOTH, _COMPILED = 1, 3, 4, 6
"""Up to so many batches a shape is run as it is, which may make kernels; timed so; run both ways; timed compiled."""
_GAIN = 1.03
"""Compiled it must be so many times as fast."""
_LEAST_COSINE = 0.9999


@dataclass(slots=True)
class _Shape:
    batches: int = 0
    plain_s: float = float("inf")
    """The least that a batch took."""
    compiled_s: float = float("inf")
    refused: bool = False
    """The compiler failed, or made other vectors."""

    @property
    def pays(self) -> bool:
        return not self.refused and self.plain_s >= _GAIN * self.compiled_s


class Compiled:
    """`function`, of arrays to vectors: one array, a row each."""

    def __init__(
        self,
        function: Callable[..., Any],
        compiler: Callable[[Callable[..., Any]], Callable[..., Any]],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._plain = function
        self._compiled = compiler(function)
        self._clock = clock
        self._shapes: dict[tuple[tuple[int, ...], ...], _Shape] = {}

    def __call__(self, arrays: Sequence[Any]) -> np.ndarray:
        """The vectors, in float32; raises what `function` raises."""
        key = tuple(tuple(array.shape) for array in arrays)
        if key not in self._shapes and len(self._shapes) >= _MOST_SHAPES:
            return run(self._plain, arrays)
        shape = self._shapes.setdefault(key, _Shape())
        shape.batches += 1
        if shape.batches > _COMPILED:
            return run(self._compiled if shape.pays else self._plain, arrays)
        if shape.batches <= _WARMED_UP or shape.refused:
            return run(self._plain, arrays)
        if shape.batches <= _PLAIN:
            made, took_s = self._timed(self._plain, arrays)
            shape.plain_s = min(shape.plain_s, took_s)
            return made
        if shape.batches <= _BOTH:
            made = run(self._plain, arrays)
            shape.refused = not self._agrees(made, arrays)
            return made
        made, took_s = self._timed(self._compiled, arrays)
        shape.compiled_s = min(shape.compiled_s, took_s)
        return made

    def _timed(self, function: Callable[..., Any], arrays: Sequence[Any]) -> tuple[np.ndarray, float]:
        started = self._clock()
        return run(function, arrays), self._clock() - started

    def _agrees(self, made: np.ndarray, arrays: Sequence[Any]) -> bool:
        """Whether the compiled function makes these vectors too. Those of places without a text are zero."""
        try:
            compiled = run(self._compiled, arrays)
        except Exception:  # noqa: BLE001 - whatever MLX raises of a model that it cannot compile
            return False
        norms = np.linalg.norm(made, axis=1) * np.linalg.norm(compiled, axis=1)
        return bool(((made * compiled).sum(axis=1) >= _LEAST_COSINE * norms).all() and np.isfinite(norms).all())


def run(function: Callable[..., Any], arrays: Sequence[Any]) -> np.ndarray:
    """What it makes of them, in float32."""
    return np.array(function(*arrays), dtype=np.float32)
