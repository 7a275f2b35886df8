"""Whether other shapes would suit the texts that were served better than those there are. Arithmetic only."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from impetus_backends.embedding.devices.packages.buckets import DOCSTRING_LENGTHS, STEP, Bucket, plan, suiting

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST_SAVED = 0.1
"""Of the padded work: below this other shapes are not worth a conversion."""
_SAMPLE = 1024
_TOGETHER = 256


@dataclass(frozen=True, slots=True)
class Fit:
    """Shapes that suit better."""

    buckets: tuple[Bucket, ...]
    saved: float
    """Of the work that the present ones make of the same texts, 0 to 1."""
    texts: int
    """By which this was found."""

    @property
    def shapes(self) -> str:
        return ", ".join(map(str, self.buckets))


def fit(longest: int, counts: Sequence[int], buckets: Sequence[Bucket], call_tokens: float) -> Fit | None:
    """As many shapes as there are, for texts of these lengths (as `choose` counts them); None where those that there
    are save nearly as much. `call_tokens`: what a call costs beside its own."""
    usual = len(DOCSTRING_LENGTHS) * STEP
    count = sum(bucket.length <= usual for bucket in buckets)
    packed = any(bucket.packed for bucket in buckets)
    found = suiting(longest, counts, count=count, packed=packed, call_tokens=call_tokens)
    lengths = _sample(longest, counts)
    before = work(lengths, buckets, call_tokens)
    saved = 1 - work(lengths, found, call_tokens) / before
    return Fit(found, saved, sum(counts)) if saved >= LEAST_SAVED else None


def work(lengths: Sequence[int], buckets: Sequence[Bucket], call_tokens: float) -> float:
    """What a device would run for texts of these lengths, in tokens: all in bulk, and all one at a time."""
    costs = {bucket: bucket.tokens + call_tokens for bucket in buckets}
    groups = [lengths[at : at + _TOGETHER] for at in range(0, len(lengths), _TOGETHER)]
    alone = {length: sum(costs[call.bucket] for call in plan([length], buckets, costs)) for length in set(lengths)}
    in_bulk = sum(costs[call.bucket] for group in groups for call in plan(group, buckets, costs))
    return in_bulk + sum(alone[length] for length in lengths)


def _sample(longest: int, counts: Sequence[int]) -> list[int]:
    """Lengths in these proportions, always the same, each in the middle of its step."""
    total, lengths, seen = sum(counts), list[int](), 0
    for step, count in enumerate(counts):
        # By where shares end, so that roundings do not add up.
        begin, seen = seen, seen + count
        share = _SAMPLE * seen // total - _SAMPLE * begin // total
        lengths += [min(step * STEP + STEP // 2, longest)] * share
    random.Random(0).shuffle(lengths)
    return lengths
