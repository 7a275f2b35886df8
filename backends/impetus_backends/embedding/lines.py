"""What calls of a device cost, as a line: t = a + b * tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def line_of(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """The seconds of a call, and of each token of it, by the tokens and seconds of some: the least squares of relative
    errors."""
    tokens, seconds = (np.array(each, dtype=np.float64) for each in zip(*points, strict=True))
    if len(set(tokens)) == 1:
        return 0.0, float(np.mean(seconds / tokens))
    table = np.stack([1 / seconds, tokens / seconds], axis=1)
    (fixed_s, token_s), *_ = np.linalg.lstsq(table, np.ones(len(tokens)))
    # A line that falls, or begins below nothing, is noise.
    return max(0.0, float(fixed_s)), max(float(token_s), 1e-12)
