"""How texts lie in rows on devices that take any shape: one a row, padded, or several, and a few shapes alone.

Which it is, is decided by counting products, for nobody measured: a token costs what its layers cost, and in attention
what all of its row cost, as much again where a row has six times as many tokens as the model has units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from impetus_backends.embedding.devices.packages.buckets import Bucket, Call, grouped
from impetus_backends.embedding.encoder import packable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.embedding.folder.config import EmbeddingConfig

_LENGTH_STEP = 16
_BATCH_STEP = 8
_SHORTEST_SHARED, _LONGEST_SHARED = 128, 512
_TOKENS_A_TEXT = 4
_FEWEST = 4
_WORTH = 0.9
"""Sharing has to save a tenth: its mask is larger, and it meets more shapes."""


def rows_of(config: EmbeddingConfig, lengths: Sequence[int], *, stepped: bool = True, shared: bool = True) -> Call:
    """All texts of these lengths in one call, at the least work. `stepped`: in one of a few shapes. `shared`: whether
    rows may be of several texts."""
    longest = max(lengths, default=1)
    padded = Bucket(len(lengths), longest)
    if stepped:
        padded = Bucket(round_batch(len(lengths)), min(_up(longest), max(longest, config.encoder.longest)))
    alone = Call(padded, tuple((row,) for row in range(len(lengths))))
    length = max(_up(longest), _SHORTEST_SHARED)
    if not shared or not packable(config) or len(lengths) < _FEWEST or length > _LONGEST_SHARED:
        return alone
    groups = grouped(lengths, length, length // _TOKENS_A_TEXT)
    batch = round_batch(len(groups)) if stepped else len(groups)
    full = Bucket(batch, length, 1 << (max(map(len, groups)) - 1).bit_length())
    if not full.packed or _work(config, full) > _WORTH * _work(config, padded):
        return alone
    return Call(full, tuple(groups))


def _work(config: EmbeddingConfig, bucket: Bucket) -> float:
    return bucket.tokens * (1 + bucket.length / (6 * config.encoder.hidden_size))


def _up(length: int) -> int:
    return -(-length // _LENGTH_STEP) * _LENGTH_STEP


def round_batch(count: int) -> int:
    """The next power of two up to 8, then the next multiple of 8: few shapes, and little of each batch wasted."""
    return 1 << (count - 1).bit_length() if count <= _BATCH_STEP else -(-count // _BATCH_STEP) * _BATCH_STEP
