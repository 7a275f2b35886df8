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
"""That are known at a time: those that came last."""
_MOST_BYTES = 256 * 1024 * 1024
"""That compiled shapes keep: what a model adds to scores by distance is part of each, the square of its length."""
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
    compiled: Callable[..., Any] | None = None
    """None where the compiler failed or made other vectors, where it does not pay, or where it takes too much memory;
    and before it was tried."""
    kept_bytes: int = 0


class Compiled:
    """`function`, of arrays to vectors: one array, a row each. For one thread.

    `compiler`: makes another of it, which keeps something for each shape, until it is gone. `memory_bytes`: what all
    arrays take now.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        compiler: Callable[[Callable[..., Any]], Callable[..., Any]],
        memory_bytes: Callable[[], int],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._plain = function
        self._compiler = compiler
        self._memory_bytes = memory_bytes
        self._clock = clock
        self._shapes: dict[tuple[tuple[int, ...], ...], _Shape] = {}
        """What came last is last."""

    def __call__(self, arrays: Sequence[Any]) -> np.ndarray:
        """The vectors, in float32; raises what `function` raises."""
        key = tuple(tuple(array.shape) for array in arrays)
        shape = self._shapes.pop(key, None) or _Shape()
        self._shapes[key] = shape
        if len(self._shapes) > _MOST_SHAPES:
            del self._shapes[next(iter(self._shapes))]
        shape.batches += 1
        if _WARMED_UP < shape.batches <= _PLAIN:
            made, took_s = self._timed(lambda: run(self._plain, arrays))
            shape.plain_s = min(shape.plain_s, took_s)
        elif shape.batches == _BOTH:
            made = run(self._plain, arrays)
            self._compile(shape, arrays, made)
        elif _BOTH < shape.batches <= _COMPILED:
            made, took_s = self._timed(lambda: self._run(shape, arrays))
            shape.compiled_s = min(shape.compiled_s, took_s)
            if shape.batches == _COMPILED and shape.plain_s < _GAIN * shape.compiled_s:
                shape.compiled = None
        else:
            made = self._run(shape, arrays)
        return made

    def _run(self, shape: _Shape, arrays: Sequence[Any]) -> np.ndarray:
        """Compiled where it is, and where that fails as it is."""
        if shape.compiled is not None:
            try:
                return run(shape.compiled, arrays)
            except Exception:  # noqa: BLE001 - whatever MLX raises, such as for want of memory
                shape.compiled = None
        return run(self._plain, arrays)

    def _timed(self, work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
        started = self._clock()
        return work(), self._clock() - started

    def _compile(self, shape: _Shape, arrays: Sequence[Any], made: np.ndarray) -> None:
        before_bytes = self._memory_bytes()
        # A function of its own for each shape, so that what MLX keeps of one goes with it.
        compiled = self._compiler(lambda *given: self._plain(*given))
        if self._agrees(compiled, arrays, made):
            shape.compiled, shape.kept_bytes = compiled, self._memory_bytes() - before_bytes
        held = [each for each in self._shapes.values() if each.compiled is not None]
        kept_bytes = sum(each.kept_bytes for each in held)
        for each in held:
            if kept_bytes > _MOST_BYTES:
                each.compiled, kept_bytes = None, kept_bytes - each.kept_bytes

    def _agrees(self, function: Callable[..., Any], arrays: Sequence[Any], made: np.ndarray) -> bool:
        """Whether the compiled function makes these vectors too. Those of places without a text are zero."""
        try:
            compiled = run(function, arrays)
        except Exception:  # noqa: BLE001 - whatever MLX raises of a model that it cannot compile
            return False
        norms = np.linalg.norm(made, axis=1) * np.linalg.norm(compiled, axis=1)
        return bool(((made * compiled).sum(axis=1) >= _LEAST_COSINE * norms).all() and np.isfinite(norms).all())


def run(function: Callable[..., Any], arrays: Sequence[Any]) -> np.ndarray:
    """What it makes of them, in float32; waits for the device."""
    return np.array(function(*arrays), dtype=np.float32)
