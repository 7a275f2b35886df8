"""Weights as MLX quantises them: whole numbers of a few bits, and a scale and a bias for every so many of a row.

Format: https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html, with the bits and the
size of a group in `quantization` of config.json, for all modules or for one by its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

_BITS, _GROUP_SIZES = (2, 4, 8), (16, 32, 64, 128)
_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class Packing:
    """Of one matrix."""

    group_size: int
    bits: int


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix (rows, columns): `words` (rows, columns * bits / 32) uint32, the first number in the lowest bits, and
    `scales` and `biases` (rows, columns / group_size) float32."""

    words: np.ndarray
    scales: np.ndarray
    biases: np.ndarray
    packing: Packing

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.words), self.words.shape[1] * _WORD_BITS // self.packing.bits

    def rows(self, which: slice) -> Packed:
        return Packed(self.words[which], self.scales[which], self.biases[which], self.packing)

    def values(self) -> np.ndarray:
        """In float32, as MLX makes them of scales and biases in float32."""
        bits, size = self.packing.bits, self.packing.group_size
        shifts = np.arange(0, _WORD_BITS, bits, dtype=np.uint32)
        numbers = (self.words[..., None] >> shifts & np.uint32((1 << bits) - 1)).astype(np.float32)
        groups = numbers.reshape(len(self.words), -1, size)
        groups *= self.scales[..., None]
        groups += self.biases[..., None]
        return groups.reshape(self.shape)


def read_packings(file: Path, raw: dict[str, Any]) -> dict[str, Packing]:
    """By module what a config.json says of it, with what holds of the others under no name; nothing where a model is
    not quantised. Raises `ModelError` for whatever else weights were quantised by, naming it."""
    stated = raw.get("quantization") or {}
    if raw.get("quantization_config") not in (None, {}, stated):
        raise ModelError(f"{file}: quantization_config {raw['quantization_config']!r:.200} is not supported")
    if not isinstance(stated, dict):
        raise ModelError(f"{file}: quantization {stated!r:.200} is not supported")
    if not stated:
        return {}
    own = {name: value for name, value in stated.items() if isinstance(value, dict)}
    common = {name: value for name, value in stated.items() if not isinstance(value, dict | bool)}
    return {name: _packing(file, value) for name, value in [("", common), *own.items()]}


def _packing(file: Path, stated: dict[str, Any]) -> Packing:
    known = {"group_size", "bits", "mode"}
    mode, size, bits = stated.get("mode", "affine"), stated.get("group_size"), stated.get("bits")
    if set(stated) - known or mode != "affine" or size not in _GROUP_SIZES or bits not in _BITS:
        raise ModelError(
            f"{file}: quantization {stated!r:.200} is not supported; supported is MLX's affine, with {_list(_BITS)} "
            f"bits and groups of {_list(_GROUP_SIZES)}"
        )
    return Packing(size, bits)


def _list(numbers: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}"


def packed(name: str, words: np.ndarray, scales: np.ndarray, biases: np.ndarray, packing: Packing) -> Packed:
    """Raises `ValueError` where the three do not fit one another."""
    found = Packed(words, scales, biases, packing)
    groups = (*words.shape[:1], found.shape[1] // packing.group_size) if words.ndim == 2 else ()
    if scales.shape != groups or biases.shape != groups or found.shape[1] % packing.group_size:
        raise ValueError(
            f"{name} has words {words.shape}, scales {scales.shape} and biases {biases.shape}, which is not "
            f"{packing.bits} bits in groups of {packing.group_size}"
        )
    return found
