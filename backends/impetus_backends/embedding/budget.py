"""How many padded tokens make a batch: as a device's own times say, which are much alike a line.

When a model has loaded, batches of more and more tokens are timed, and t = a + b * tokens is fitted. The fixed part `a`
is what batches are for: chosen are as many tokens as bring nine tenths of the most a second, unless a batch of them
would take longer than somebody is to wait behind it. Never fewer than what a backend of that kind always had.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from impetus_backends.embedding.lines import line_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from impetus_backends.embedding.devices.backend import EmbeddingBackend

USUAL = {
    "cpu": 1024,
    "numpy": 1024,
    "mlx": 4096,
    "coreml": 4096,
    "coreml-emulated": 1024,
    "coreai": 4096,
    "coreml+mlx": 8192,
    "simulated": 4096,
}
"""Padded tokens of a batch, by backend, where nothing is measured; and the least that a measurement chooses."""
_MOST_TOKENS = 131_072
_ENOUGH = 0.9
"""Of the most tokens a second."""
_ROW = 64
"""Tokens of a row: about a document's of a corpus of documentation."""
_GAIN = 1.05
"""More tokens in a batch must bring so many times the tokens a second, or no more are tried."""
_WORTH_A_TRY = 1.25
_RUNS = 2
"""Of each size; the first may compile."""


@dataclass(frozen=True, slots=True)
class BatchCurve:
    """What was measured: padded tokens, and the seconds of a batch of them."""

    points: tuple[tuple[int, float], ...]
    usual: int
    longest_s: float
    """That a batch of more tokens than usual may take."""

    @property
    def line(self) -> tuple[float, float]:
        """The seconds of a batch, and of each token of it: of squares of relative errors the least."""
        return line_of(self.points)

    @property
    def chosen(self) -> int:
        """The padded tokens of a batch."""
        fixed_s, token_s = self.line
        enough = _ENOUGH / (1 - _ENOUGH) * fixed_s / token_s
        bound = max(0.0, (self.longest_s - fixed_s) / token_s)
        # Beyond what was timed nothing is known: memory may end there.
        wanted = min(enough, bound, self.points[-1][0])
        return max(self.usual, int(wanted) // _ROW * _ROW)

    @property
    def words(self) -> str:
        """One sentence, with all that was measured."""
        fixed_s, token_s = self.line
        curve = ", ".join(f"{tokens:,}: {tokens / seconds:,.0f}" for tokens, seconds in self.points)
        return (
            f"batches of {self.chosen:,} padded tokens, by measurement at load: {fixed_s * 1e3:.1f} ms and "
            f"{token_s * 1e6:.2f} us a token (tokens/s by tokens: {curve})"
        )


def is_measured(backend: EmbeddingBackend) -> bool:
    """Whether its times decide: a device with buckets has its sizes, and MLX without a GPU and numpy are for checks."""
    return backend.name == "cpu" or (backend.name == "mlx" and backend.device.startswith("gpu"))


def measure_batches(
    backend: EmbeddingBackend,
    vocabulary: int,
    longest: int,
    longest_s: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> BatchCurve:
    """Times batches of a loaded backend, from half of the usual on, each of up to twice the tokens of the one before:
    until more bring nothing, or would take longer than `longest_s`. Raises what the backend raises at the usual size.
    """
    usual, random = USUAL.get(backend.name, min(USUAL.values())), np.random.default_rng(0)
    points: list[tuple[int, float]] = []
    tokens, width = usual // 2, min(_ROW, longest)
    while tokens <= _MOST_TOKENS:
        rows = list(random.integers(0, vocabulary, (max(1, tokens // width), width), dtype=np.int32))
        try:
            seconds = min(_timed(backend, rows, clock) for _ in range(_RUNS))
        except Exception:
            if tokens <= usual:
                raise
            break  # no more memory than this
        points.append((len(rows) * width, seconds))
        slowed = len(points) > 1 and _rate(points[-1]) < _GAIN * max(map(_rate, points[:-1]))
        # As many again, or as many as are sure not to take too long.
        more = min(2 * tokens, int(tokens * longest_s / seconds)) if tokens >= usual else usual
        if tokens >= usual and (slowed or more < _WORTH_A_TRY * tokens):
            break
        tokens = more
    return BatchCurve(tuple(points), usual, longest_s)


def _timed(backend: EmbeddingBackend, rows: list[np.ndarray], clock: Callable[[], float]) -> float:
    started = clock()
    backend.embed(rows)
    return max(clock() - started, 1e-9)


def _rate(point: tuple[int, float]) -> float:
    return point[0] / point[1]
