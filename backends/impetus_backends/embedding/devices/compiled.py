"""A model as MLX compiles it: for shapes that come again, and only where that was seen to pay on this device.

`mx.compile` fuses what is done to each number into few kernels and makes the graph once, but once for each shape; so a
shape that comes rarely is better run as it is. Whether it pays is timed when a model has loaded, and the vectors are
held together. On an H100, with a BERT-base in float16 at 32,768 padded tokens a batch, it was a third more texts a
second than with the activation alone fused; on a Mac nobody has measured it yet, which is why each of them does.
Source: https://ml-explore.github.io/mlx/build/html/usage/compile.html
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_COMES_AGAIN = 3
"""So often a shape must have come."""
_MOST_SHAPES = 256
"""What was made of each stays, and is small."""
_GAIN = 1.03
"""Compiled it must be so many times as fast."""
_RUNS = 3
_LEAST_COSINE = 0.9999


class Compiled:
    """`function`, of arrays to one array, compiled for the shapes that come again once `try_on` has found it to pay."""

    def __init__(
        self,
        function: Callable[..., Any],
        compiler: Callable[[Callable[..., Any]], Callable[..., Any]],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._function = function
        self._made = compiler(function)
        self._clock = clock
        self._seen: Counter[tuple[tuple[int, ...], ...]] = Counter()
        self.pays = False

    def __call__(self, arrays: Sequence[Any]) -> Any:
        if not self.pays:
            return self._function(*arrays)
        shapes = tuple(tuple(array.shape) for array in arrays)
        if shapes not in self._seen and len(self._seen) >= _MOST_SHAPES:
            return self._function(*arrays)
        self._seen[shapes] += 1
        return (self._made if self._seen[shapes] >= _COMES_AGAIN else self._function)(*arrays)

    def try_on(self, arrays: Sequence[Any]) -> bool:
        """Times the function as it is and compiled, the first run of each aside, and decides. A compiler that fails
        here, or whose vectors are others, does not pay."""
        plain_s, plain = self._timed(self._function, arrays)
        try:
            compiled_s, compiled = self._timed(self._made, arrays)
        except Exception:  # noqa: BLE001 - whatever MLX raises of a model that it cannot compile
            return False
        self.pays = plain_s >= _GAIN * compiled_s and _least_cosine(plain, compiled) >= _LEAST_COSINE
        return self.pays

    def _timed(self, function: Callable[..., Any], arrays: Sequence[Any]) -> tuple[float, np.ndarray]:
        made, took_s = np.array(function(*arrays)), []
        for _ in range(_RUNS):
            started = self._clock()
            made = np.array(function(*arrays))
            took_s.append(self._clock() - started)
        return max(min(took_s), 1e-9), made.astype(np.float32)


def _least_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """NaN where either is no number."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(axis=1) / np.maximum(norms, 1e-12)).min())
