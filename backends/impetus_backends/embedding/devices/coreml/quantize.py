"""Weights made smaller, in the forms that Core ML stores: arithmetic on arrays, and nothing of Core ML.

Forms: https://apple.github.io/coremltools/docs-guides/source/opt-overview.html. Only matrices are made smaller; biases
and norms are a thousandth of a model, and matter most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MODES = ("none", "int8", "palette6", "w8a8")
"""As the command line names them. `w8a8` is int8 weights here; how far its activations reach is `calibration`'s."""
_COLOURS = 64
_ROUNDS = 300
_BINS = 4096


@dataclass(frozen=True, slots=True)
class Dense:
    """float16 values."""

    values: np.ndarray

    def expand(self) -> np.ndarray:
        return self.values


@dataclass(frozen=True, slots=True)
class Int8:
    """Symmetric int8, with one float16 scale a row."""

    values: np.ndarray
    scales: np.ndarray

    def expand(self) -> np.ndarray:
        product: np.ndarray = self.values * self.scales
        return product


@dataclass(frozen=True, slots=True)
class Palette:
    """Indices, uint8 below 64, into a table of 64 float16 values."""

    indices: np.ndarray
    table: np.ndarray

    def expand(self) -> np.ndarray:
        values: np.ndarray = self.table[self.indices]
        return values


Stored = Dense | Int8 | Palette


def store(array: np.ndarray, mode: str) -> Stored:
    """A float32 weight in the form of that mode; anything but a matrix stays float16."""
    if mode == "none" or array.ndim != 2:
        return Dense(array.astype(np.float16))
    return _palette(array) if mode == "palette6" else _int8(array)


def _int8(array: np.ndarray) -> Int8:
    # The scale is rounded first, so that the values are the best for the scale that is stored.
    scales = (np.abs(array).max(axis=1, keepdims=True) / 127).astype(np.float16)
    scales = np.maximum(scales, np.finfo(np.float16).tiny)
    values = np.clip(np.rint(array / scales.astype(np.float32)), -127, 127)
    return Int8(values.astype(np.int8), scales)


def _palette(array: np.ndarray) -> Palette:
    """Lloyd's k-means in one dimension, over the distinct float16 values: in order, so that clusters are ranges.

    Begins where quantisation theory puts the centres of many narrow cells: as dense as the cube root of the values'
    own density (Panter and Dite, 1951). From there it ends in a better optimum than from even shares of the values.
    """
    codes = array.astype(np.float16).view(np.uint16)
    found = np.bincount(codes.ravel(), minlength=1 << 16)
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    order = np.argsort(np.where(found, every, np.inf), kind="stable")[: np.count_nonzero(found)]
    points, counts = every[order], found[order]
    histogram, edges = np.histogram(points, bins=_BINS, weights=counts)
    density = np.cumsum(np.cbrt(histogram))
    centres = edges[np.searchsorted(density, (np.arange(_COLOURS) + 0.5) / _COLOURS * density[-1])]
    weight, total = (np.concatenate([[0], np.cumsum(each)]) for each in (counts, counts * points))
    for _ in range(_ROUNDS):
        ends = np.concatenate([[0], np.searchsorted(points, (centres[1:] + centres[:-1]) / 2), [len(points)]])
        sizes = np.diff(weight[ends])
        moved = np.where(sizes > 0, np.diff(total[ends]) / np.maximum(sizes, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    table = centres.astype(np.float16)
    nearest = np.zeros(1 << 16, dtype=np.uint8)
    nearest[order] = np.searchsorted((table[1:].astype(np.float64) + table[:-1]) / 2, points)
    return Palette(nearest[codes], table)
