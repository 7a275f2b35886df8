"""How far the inputs of a model's linear layers reach: what the ranges of eight-bit activations are taken from.

The reference runs the texts to calibrate on in float32, one by one, so that no padding counts. Core ML needs no part in
it, so a package can be written, and checked, on any machine. A range is symmetric and of a whole tensor, as the Neural
Engine computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from impetus_backends.embedding.devices.reference import NumpyOps
from impetus_backends.embedding.encoder import embed, pad
from impetus_backends.embedding.folder.fitting import open_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from impetus_backends.embedding.devices.reference import Floats
    from impetus_backends.embedding.folder.config import EmbeddingConfig

_MOST_TOKENS = 512
"""Longer texts are long for numpy, and their tokens reach no further."""


class _Reach(NumpyOps):
    """`Ops` that note the largest input of each linear layer. Its `project`, after the pooling, is none of them."""

    furthest: dict[str, float]

    def linear(self, x: Floats, name: str, width: int, *, bias: bool = True) -> Floats:
        self.furthest[name] = max(self.furthest.get(name, 0.0), float(np.abs(x).max()))
        return super().linear(x, name, width, bias=bias)


def ranges(
    config: EmbeddingConfig, rows: Sequence[np.ndarray], progress: Callable[[float], None] = lambda share: None
) -> dict[str, float]:
    """By the name of a linear layer, the most that its inputs come to, whatever their sign. Raises `ModelError` for bad
    files."""
    ops = _Reach(open_weights(config))
    ops.furthest = {}
    for done, row in enumerate(rows):
        progress(done / len(rows))
        embed(ops, config, pad(config, [row[:_MOST_TOKENS]]))
    return ops.furthest
