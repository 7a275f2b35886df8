"""Which of a model's kinds of distance each distance from a query to a key is of."""

from __future__ import annotations

import numpy as np


def distance_buckets(longest: int, buckets: int = 32, farthest: int = 128) -> np.ndarray:
    """The bucket of every distance from a query to a key, of -longest to longest: half of them for each direction, the
    near ones one a distance and the far ones wider and wider (T5's, arXiv:1910.10683)."""
    distances = np.arange(-longest, longest + 1)
    half = buckets // 2
    exact = half // 2
    ahead = np.where(distances > 0, half, 0)
    far = np.abs(distances).astype(np.float32)
    with np.errstate(divide="ignore"):
        wide = np.log(far / exact) / np.log(farthest / exact) * (half - exact)
    steps = exact + np.maximum(wide, 0).astype(np.int64)
    return (ahead + np.where(far < exact, far.astype(np.int64), np.minimum(steps, half - 1))).astype(np.int64)


def place_buckets(longest: int, half: int, farthest: int) -> np.ndarray:
    """The row of every distance from a query to a key, of -longest to longest, among 2 * half: the near ones one a
    distance, the far ones by their logarithm up to `farthest` (DeBERTa's, arXiv:2006.03654, in float32)."""
    behind = -np.arange(-longest, longest + 1)
    exact = half // 2
    far = np.maximum(np.abs(behind), 1).astype(np.float32) / np.float32(exact)
    widest = np.log(np.float32((farthest - 1) / exact))
    logarithmic = np.ceil(np.log(far) / widest * np.float32(exact - 1)) + exact
    steps = np.where(np.abs(behind) <= exact, behind, logarithmic * np.sign(behind)).astype(np.int64)
    return (steps + half).clip(0, 2 * half - 1)
