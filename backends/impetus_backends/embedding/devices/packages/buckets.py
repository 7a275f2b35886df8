"""Shapes: which batches a package is built for, and which bucket takes which rows. Pure functions over lengths.

A call of the device costs what its padded matrix costs and a little more, whatever it holds: `_CALL_TOKENS` is that
little, in tokens. It is a guess until someone measures it on a Mac, and decides only how many small buckets there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from impetus_backends.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_COUNT = 6
STEP = 32
"""Lengths are multiples of this, but for the longest: the Neural Engine wants so many elements in the last axis."""
DOCSTRING_LENGTHS = (4073, 1455, 648, 326, 200, 136, 89, 61, 42, 29, 27, 24, 11, 21, 11, 73)
"""How many docstrings of Python's standard library have 1 to 32 tokens, 33 to 64, and so on; beyond 512 all are 512."""
_CALL_TOKENS = 64
_MOST_TOKENS = 1024
_BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """One static shape: `batch` texts of up to `length` tokens."""

    batch: int
    length: int

    @property
    def cost(self) -> int:
        """Of one call, in tokens."""
        return self.batch * self.length + _CALL_TOKENS

    @property
    def function(self) -> str:
        """The name of its function in a package."""
        return f"batch{self.batch}_length{self.length}"

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the device: a bucket, and which rows it takes."""

    bucket: Bucket
    rows: tuple[int, ...]


def choose(
    longest: int, counts: Sequence[int] = DOCSTRING_LENGTHS, *, count: int = DEFAULT_COUNT
) -> tuple[Bucket, ...]:
    """The `count` buckets that serve texts of these lengths best, half of them in bulk and half one at a time.

    `counts[i]` texts have more than `i * STEP` and at most `(i + 1) * STEP` tokens; none has more than `longest`, which
    one of the buckets always takes. Found by adding the best bucket, then exchanging one at a time while that helps.
    """
    lengths = [*range(STEP, longest, STEP), longest]
    weights = [*counts[: len(lengths) - 1], sum(counts[len(lengths) - 1 :])]
    weights += [0] * (len(lengths) - len(weights))
    options = [Bucket(batch, length) for length in lengths for batch in _BATCHES if batch * length <= _MOST_TOKENS]
    # The longest rows must fit even where one alone is beyond the usual size.
    options += [Bucket(1, longest)] if longest > _MOST_TOKENS else []

    def cost(chosen: Sequence[Bucket]) -> float:
        total = 0.0
        for length, weight in zip(lengths, weights, strict=True):
            fits = [bucket for bucket in chosen if bucket.length >= length]
            if not fits:
                return float("inf")
            total += weight * min(bucket.cost / bucket.batch for bucket in fits)
            total += weight * min(bucket.cost for bucket in fits)
        return total

    chosen = [min((bucket for bucket in options if bucket.length == longest), key=lambda bucket: cost([bucket]))]
    while len(chosen) < min(count, len(options)):
        chosen.append(min((each for each in options if each not in chosen), key=lambda each: cost([*chosen, each])))
    while True:
        swaps = [
            [*chosen[:at], other, *chosen[at + 1 :]]
            for at in range(len(chosen))
            for other in options
            if other not in chosen
        ]
        better = min(swaps, key=cost, default=chosen)
        if cost(better) >= cost(chosen):
            return tuple(sorted(chosen, key=lambda bucket: (bucket.length, bucket.batch)))
        chosen = better


def plan(lengths: Sequence[int], buckets: Sequence[Bucket]) -> list[Call]:
    """The calls that together take every row once, each row in a bucket it fits, at the least cost in all.

    Longest first. Rows in the order of their lengths make an exact solution a matter of one pass: a call may as well
    take the longest rows left, and as many as it holds. Raises `RequestError` for a row that fits nowhere.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    longest = max((bucket.length for bucket in buckets), default=0)
    if order and not 1 <= lengths[order[-1]] <= lengths[order[0]] <= longest:
        sizes = f"{lengths[order[-1]]} to {lengths[order[0]]} tokens"
        raise RequestError(f"got {sizes}; each row must be of 1 to {longest}")
    best: list[tuple[int, Bucket | None]] = [(0, None)]
    # best[n]: how to do the n shortest rows.
    for left in range(1, len(order) + 1):
        row = order[len(order) - left]
        best.append(
            min(
                ((bucket.cost + best[max(0, left - bucket.batch)][0], bucket)
                 for bucket in buckets if bucket.length >= lengths[row]),
            )
        )  # fmt: skip
    calls, at = [], 0
    while at < len(order):
        bucket = best[len(order) - at][1]
        assert bucket is not None
        calls.append(Call(bucket, tuple(order[at : at + bucket.batch])))
        at += bucket.batch
    return calls


@dataclass(frozen=True, slots=True)
class Padding:
    """What padding adds to the tokens of some texts: 0.25 is a quarter more."""

    in_bulk: float
    alone: float


def padding(lengths: Sequence[int], buckets: Sequence[Bucket], *, together: int = 256) -> Padding:
    """For texts of these lengths, sorted and `together` at a time, and each alone."""
    ordered = sorted(lengths)
    real = sum(ordered)
    groups = [ordered[at : at + together] for at in range(0, len(ordered), together)]
    bulk = sum(call.bucket.batch * call.bucket.length for group in groups for call in plan(group, buckets))
    alone = sum(call.bucket.batch * call.bucket.length for each in ordered for call in plan([each], buckets))
    return Padding(bulk / real - 1, alone / real - 1)
