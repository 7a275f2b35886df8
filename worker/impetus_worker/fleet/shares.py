"""What share of its queues is a worker's, by what it and the others measured: pure functions over their records.

For texts whose callers wait the speed of a worker is one over the seconds of a short one by itself; for bulk it is
tokens a second in its largest batches. So one may be first for these and another for those, whatever device they have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..leases.portions import ALONE, Share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from impetus_producer.contract import MeasuredCost, WorkerRecord

_SHORT_TOKENS = 32
"""A text whose caller waits: a question, a title."""
_FASTEST_S = 1e-6
"""No batch takes less: so that what a record says is a number one can count with."""
_CHANGED = 1.25
"""A cost is told anew when it is so many times another: each time all others look."""


def shares(own: WorkerRecord, others: Iterable[WorkerRecord]) -> tuple[Share, Share]:
    """Of the queue whose callers wait, and of bulk. `others`: those that serve the same queues.

    Generations are not shared out: they join what runs wherever there is a place.
    """
    if own.role == "generation":
        return ALONE, ALONE
    others = list(others)
    urgent = [own.cost, *(other.cost for other in others)]
    bulk = [own.cost, *(other.cost for other in others if other.bulk)]
    return _share(urgent, _texts_per_s), _share(bulk, _tokens_per_s)


def _texts_per_s(cost: MeasuredCost) -> float:
    return 1 / max(cost.seconds(_SHORT_TOKENS), _FASTEST_S)


def _tokens_per_s(cost: MeasuredCost) -> float:
    return cost.batch_tokens / max(cost.seconds(cost.batch_tokens), _FASTEST_S)


def _share(costs: Sequence[MeasuredCost | None], speed_of: Callable[[MeasuredCost], float]) -> Share:
    """Of the first. Who has measured nothing yet counts as one like the others."""
    known = [speed_of(cost) for cost in costs if cost is not None]
    usual = sum(known) / len(known) if known else 1.0
    speeds = [usual if cost is None else speed_of(cost) for cost in costs]
    if len(speeds) == 1:
        return ALONE
    return Share(speeds[0] / sum(speeds), max(speeds[1:]) / sum(speeds))


def is_news(told: MeasuredCost | None, now: MeasuredCost | None) -> bool:
    """Whether a cost is so much another that the others are to hear of it."""
    if told is None or now is None:
        return now is not told
    pairs = ((speed_of(told), speed_of(now)) for speed_of in (_texts_per_s, _tokens_per_s))
    return any(max(pair) > _CHANGED * min(pair) for pair in pairs)
