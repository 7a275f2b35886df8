"""Shapes: which batches a package is built for, and which bucket takes which rows. Pure functions over lengths.

A call of the device costs what its padded matrix costs and a little more, whatever it holds. Until that little is
measured for a model (`Runner.call_tokens`) it is guessed, in tokens; it decides how many small buckets there are.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
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
GUESSED_CALL_TOKENS = 64
MOST_CALL_TOKENS = 1024
"""Beyond this no bucket would be smaller than the largest."""
_MOST_TOKENS = 1024
_BATCHES = (1, 2, 4, 8, 16, 32)
_PACKED_LENGTH = 512
"""Longer rows cost more in attention than they save in padding."""
_TOKENS_A_TEXT = 8
"""So many of a row there are for each text that it may hold: the shortest texts fill no row."""
_FEWEST_WITH_PACKED = 4


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """One static shape: `batch` rows of up to `length` tokens, each of one text or of up to `texts` end to end."""

    batch: int
    length: int
    texts: int = 1

    @property
    def packed(self) -> bool:
        return self.texts > 1

    @property
    def most(self) -> int:
        """How many texts one call takes."""
        return self.batch * self.texts

    @property
    def aligned(self) -> bool:
        """Whether the last axis is what the Neural Engine computes anyway."""
        return self.length % STEP == 0

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def cost(self) -> int:
        """Of one call, in tokens, where nothing is measured."""
        return self.tokens + GUESSED_CALL_TOKENS

    @property
    def function(self) -> str:
        """The name of its function in a package."""
        return f"batch{self.batch}_length{self.length}" + (f"_texts{self.texts}" if self.packed else "")

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}" + (f"/{self.texts}" if self.packed else "")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the device: a bucket, and which texts each of its rows takes."""

    bucket: Bucket
    groups: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """All of them, in the order of their vectors."""
        return tuple(row for group in self.groups for row in group)

    @property
    def places(self) -> list[int]:
        """Where their vectors are among those that the bucket makes."""
        texts = self.bucket.texts
        return [row * texts + number for row, group in enumerate(self.groups) for number in range(len(group))]


Costs = Mapping[Bucket, float]
"""What a call of each bucket costs, as it was measured or is guessed, in whatever unit."""


def choose(
    longest: int,
    counts: Sequence[int] = DOCSTRING_LENGTHS,
    *,
    count: int = DEFAULT_COUNT,
    packed: bool = False,
    call_tokens: float = GUESSED_CALL_TOKENS,
) -> tuple[Bucket, ...]:
    """The `count` buckets that serve texts of these lengths best, half of them in bulk and half one at a time.

    `counts[i]` texts have more than `i * STEP` and at most `(i + 1) * STEP` tokens; none has more than `longest`, which
    one of the buckets always takes. Found by adding the best bucket, then exchanging one at a time while that helps.
    `packed`: two of four or more are for several texts a row, a full one and one for what is left over. `call_tokens`:
    what a call costs beside its tokens.
    """
    lengths = [*range(STEP, longest, STEP), longest]
    weights = [*counts[: len(lengths) - 1], sum(counts[len(lengths) - 1 :])]
    weights += [0] * (len(lengths) - len(weights))
    options = [Bucket(batch, length) for length in lengths for batch in _BATCHES if batch * length <= _MOST_TOKENS]
    # The longest rows must fit even where one alone is beyond the usual size.
    options += [Bucket(1, longest)] if longest > _MOST_TOKENS else []
    shared = _packed(min(longest, _PACKED_LENGTH)) if packed and count >= _FEWEST_WITH_PACKED else ()
    count -= len(shared)
    costs = {bucket: bucket.tokens + call_tokens for bucket in (*options, *shared)}

    def cost(chosen: Sequence[Bucket]) -> float:
        total = 0.0
        for length, weight in zip(lengths, weights, strict=True):
            fits = [bucket for bucket in chosen if bucket.length >= length]
            if not fits:
                return float("inf")
            in_bulk = [costs[bucket] / bucket.batch for bucket in fits]
            in_bulk += [costs[bucket] * length / bucket.tokens for bucket in shared if bucket.length >= length]
            total += weight * (min(in_bulk) + min(costs[bucket] for bucket in fits))
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
            return (*sorted(chosen, key=lambda bucket: (bucket.length, bucket.batch)), *shared)
        chosen = better


def suiting(
    longest: int,
    counts: Sequence[int] = DOCSTRING_LENGTHS,
    *,
    count: int = DEFAULT_COUNT,
    packed: bool = False,
    call_tokens: float = GUESSED_CALL_TOKENS,
) -> tuple[Bucket, ...]:
    """The `count` buckets that `choose` finds for texts of these lengths, and for longer texts one a doubling of their
    length, up to `longest`: none is padded to more than twice its tokens."""
    usual = min(longest, len(DOCSTRING_LENGTHS) * STEP)
    lengths = []
    while longest > usual:
        lengths.append(longest)
        longest = -(-longest // (2 * STEP)) * STEP
    chosen = choose(usual, counts, count=count, packed=packed, call_tokens=call_tokens)
    return (*chosen, *(Bucket(1, length) for length in reversed(lengths)))


def _packed(length: int) -> tuple[Bucket, ...]:
    texts = max(2, length // _TOKENS_A_TEXT)
    batch = max(batch for batch in _BATCHES if batch * length <= _MOST_TOKENS or batch == 1)
    return tuple(Bucket(each, length, texts) for each in sorted({1, batch}))


def plan(lengths: Sequence[int], buckets: Sequence[Bucket], costs: Costs | None = None) -> list[Call]:
    """The calls that together take every row once, each row in a bucket it fits, at the least cost found.

    Of rows of one text each no other choice costs less. Where buckets take several, all of these plans are weighed:
    none of the texts packed, or those that are no longer than a bucket, the rest padded; and what would fill a last
    call in part, packed or padded. Raises `RequestError` for a row that fits nowhere.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    alone = [bucket for bucket in buckets if not bucket.packed]
    longest = max((bucket.length for bucket in alone), default=0)
    if order and not 1 <= lengths[order[-1]] <= lengths[order[0]] <= longest:
        sizes = f"{lengths[order[-1]]} to {lengths[order[0]]} tokens"
        raise RequestError(f"got {sizes}; each row must be of 1 to {longest}")
    costs = costs or {bucket: bucket.cost for bucket in buckets}
    plans = [_padded([(row,) for row in order], lengths, alone, costs)]
    for length, texts in sorted({(bucket.length, bucket.texts) for bucket in buckets if bucket.packed}):
        several = [bucket for bucket in buckets if (bucket.length, bucket.texts) == (length, texts)]
        for limit in sorted({length, *(bucket.length for bucket in alone if bucket.length < length)}):
            short = [row for row in order if lengths[row] <= limit]
            groups = grouped(lengths, length, texts, short)
            left_over = len(groups) % max(bucket.batch for bucket in several)
            for kept in {len(groups), len(groups) - left_over}:
                packed = {row for group in groups[:kept] for row in group}
                others = [(row,) for row in order if row not in packed]
                plans.append(
                    _padded(groups[:kept], [length] * len(lengths), several, costs)
                    + _padded(others, lengths, alone, costs)
                )
    return min(plans, key=lambda calls: sum(costs[call.bucket] for call in calls))


def _padded(
    groups: Sequence[tuple[int, ...]], lengths: Sequence[int], buckets: Sequence[Bucket], costs: Costs
) -> list[Call]:
    """Rows as they are, longest first, into calls at the least cost.

    In that order an exact solution is a matter of one pass: a call may as well take the longest rows left, and as many
    as it holds.
    """
    best: list[tuple[float, Bucket | None]] = [(0, None)]
    # best[n]: how to do the n shortest rows.
    for left in range(1, len(groups) + 1):
        length = lengths[groups[len(groups) - left][0]]
        best.append(
            min(
                ((costs[bucket] + best[max(0, left - bucket.batch)][0], bucket)
                 for bucket in buckets if bucket.length >= length),
            )
        )  # fmt: skip
    calls, at = [], 0
    while at < len(groups):
        bucket = best[len(groups) - at][1]
        assert bucket is not None
        calls.append(Call(bucket, tuple(groups[at : at + bucket.batch])))
        at += bucket.batch
    return calls


def grouped(
    lengths: Sequence[int], length: int, texts: int, rows: Sequence[int] | None = None
) -> list[tuple[int, ...]]:
    """The rows, or those named, into as few groups of at most `length` tokens and `texts` rows as best fit decreasing
    finds: the longest first, each into the fullest group that has room."""
    rows = range(len(lengths)) if rows is None else rows
    open_groups: list[tuple[int, int, list[int]]] = []  # room, number, rows; by room
    groups: list[list[int]] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        at = bisect_left(open_groups, (lengths[row], -1, []))
        if at == len(open_groups):
            group: list[int] = []
            groups.append(group)
            room, number = length, len(groups)
        else:
            room, number, group = open_groups.pop(at)
        group.append(row)
        room -= lengths[row]
        if room and len(group) < texts:
            insort(open_groups, (room, number, group))
    return [tuple(group) for group in groups]


@dataclass(frozen=True, slots=True)
class Padding:
    """What padding adds to the tokens of some texts: 0.25 is a quarter more."""

    in_bulk: float
    alone: float


def padding(lengths: Sequence[int], buckets: Sequence[Bucket], *, together: int = 256) -> Padding:
    """For texts of these lengths, `together` at a time and each alone; sorted as workers do, unless rows are packed."""
    ordered = list(lengths) if any(bucket.packed for bucket in buckets) else sorted(lengths)
    real = sum(ordered)
    groups = [ordered[at : at + together] for at in range(0, len(ordered), together)]
    bulk = sum(call.bucket.tokens for group in groups for call in plan(group, buckets))
    singly = {length: sum(call.bucket.tokens for call in plan([length], buckets)) for length in set(ordered)}
    alone = sum(singly[length] for length in ordered)
    return Padding(bulk / real - 1, alone / real - 1)
