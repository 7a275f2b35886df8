"""The token rows of one lane that wait for the device: sorted by length for it, and none passed by too many others.

The oldest rows, up to some batches' worth of them, are planned together: for each model they are packed by length, so
that little is padding (Infinity, `inference/queue.py`), and the batches that hold the oldest rows go first. When
enough have come beside what is left of the plan, all are planned anew. The longest rows of a plan seldom fill their
last batch: once, and only once, they are put into the next plan, where more of their length may be.

A plan reaches from the oldest row that waits to those that came at most `plan_batches` full batches' worth after it.
So a row is passed by no more than that of later ones, however many come, and however often they are planned.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from .packing import fill, pack
from .quarantine import Witness

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np

    from impetus_backends.protocol import EngineInfo, Spans

    from ...leases.claims import ClaimedJob
    from ..reading.rows import EncodedText

PLAN_BATCHES = 128
_WORTH_A_PLAN = 0.25
"""When so many times the rows that are left of a plan have come, there is a new one: each row is sorted some five times
at most."""


@dataclass(eq=False, slots=True)
class OpenEmbedding:
    """A job whose texts are tokenised, and what has been made of it: vectors, or a reranker's scores as such.

    `vectors`: of rows that have none yet they are anything.
    """

    job: ClaimedJob
    request: Any
    """As the role has them."""
    model: EngineInfo
    """Which is to make it; once it has, as what it did."""
    tokens: int
    truncated: int
    lost: int
    """Tokens of texts that were truncated."""
    vectors: Any
    """An array, or a list where they are sparse."""
    rows_left: int
    """How many texts have no vector yet."""
    urgent: bool
    """Whether its caller waits."""
    output: str = "dense"
    """What is made of each row, as engines call it."""
    waiting_rows: int = 0
    """How many of them are in the backlog."""
    waiting_tokens: int = 0
    engine_s: float | None = None
    """How long the engine was at batches with rows of it, one that is running aside; None if it has begun none."""
    energy_j: float | None = 0.0
    """Its rows' part of what the chip used for their batches; None where one of them was not measured."""
    ended: bool = False
    """Whether nobody wants its rows any longer. They are left out where they come up."""

    @property
    def packs(self) -> bool:
        """Whether the device lays several of its rows in one."""
        return self.model.packs and self.output == "dense"

    def spent(self, joules: float | None) -> None:
        """On one of its rows."""
        self.energy_j = None if joules is None or self.energy_j is None else self.energy_j + joules


@dataclass(eq=False, slots=True)
class Row(Witness):
    """One text of one job."""

    owner: OpenEmbedding
    index: int
    ids: np.ndarray
    first: int
    """Which of the job's vectors is its own, or the first of its own."""
    chunks: Spans = ()
    """Those of which there is to be a vector each."""
    order: int = 0
    """How many rows came to the backlog before it."""
    place: int = 0
    """How many tokens they have."""


def rows_of(owner: OpenEmbedding, texts: Sequence[EncodedText]) -> list[Row]:
    """A row for each text, whose vectors follow those of the one before."""
    rows, first = list[Row](), 0
    for index, text in enumerate(texts):
        rows.append(Row(owner, index, text.ids, first, text.chunks))
        first += len(text.chunks) or 1
    return rows


class Backlog:
    """`rows` and `tokens`: how many wait, those of ended jobs aside."""

    def __init__(self, *, max_rows: int, max_tokens: int, plan_batches: int = PLAN_BATCHES) -> None:
        self.rows = self.tokens = 0
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._plan_batches = plan_batches
        self._again: deque[list[Row]] = deque()
        """Batches that go before all others, as they are."""
        self._planned: deque[list[Row]] = deque()
        self._put_off: list[Row] = []
        self._unplanned: deque[Row] = deque()
        """Oldest first, and all of them later than those of any plan."""
        self._came_rows = self._came_tokens = 0
        self._took_all = True
        """Whether no row was left out of the last plan."""
        self._seen = 0
        """Rows of a lesser order have been in a plan."""
        self._unwanted = 0
        """How many rows of ended jobs are still in the way."""

    @property
    def is_full(self) -> bool:
        """Whether there is enough for a batch that needs to wait for no more."""
        return self.rows >= self._max_rows or self.tokens >= self._max_tokens

    @property
    def batches(self) -> float:
        """How many full batches there are, padding aside."""
        return self.batches_of(self.rows, self.tokens)

    def batches_of(self, rows: int, tokens: int) -> float:
        return max(rows / self._max_rows, tokens / self._max_tokens)

    def add(self, rows: Iterable[Row]) -> None:
        """Takes rows in, behind all others."""
        for row in rows:
            row.order, row.place = self._came_rows, self._came_tokens
            self._came_rows += 1
            self._came_tokens += len(row.ids)
            self._unplanned.append(row)
            self._count(row, 1)

    def put_first(self, rows: Iterable[Row]) -> None:
        """As the next batch: rows that run again. Those of ended jobs are left out."""
        if batch := [row for row in rows if not row.owner.ended]:
            self._again.appendleft(batch)
            for row in batch:
                self._count(row, 1)

    def take(self) -> list[Row]:
        """The next batch; there must be rows."""
        while True:
            if not self._again and self._plan_is_due:
                self._plan()
            batch = self._wanted((self._again or self._planned).popleft())
            if batch:
                for row in batch:
                    self._count(row, -1)
                return batch

    def forget(self, owner: OpenEmbedding) -> None:
        """The job, which has ended, has no rows here any more."""
        self.rows -= owner.waiting_rows
        self.tokens -= owner.waiting_tokens
        self._unwanted += owner.waiting_rows
        owner.waiting_rows = owner.waiting_tokens = 0
        if self._unwanted > self.rows:  # seldom enough that each row pays for one look at another
            self._unplanned = deque(row for row in self._unplanned if not row.owner.ended)
            self._put_off = [row for row in self._put_off if not row.owner.ended]
            self._again, self._planned = _without_ended(self._again), _without_ended(self._planned)
            self._unwanted = 0

    @property
    def _plan_is_due(self) -> bool:
        """Whether nothing is planned, or enough rows have come beside a plan of all there were."""
        if not self._planned:
            return True
        return self._took_all and len(self._unplanned) >= _WORTH_A_PLAN * sum(map(len, self._planned))

    def _plan(self) -> None:
        rows, self._put_off = list(self._next_rows()), []
        self._planned.clear()
        of_one: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            of_one.setdefault((row.owner.model.model, row.owner.output), []).append(row)
        for alike in of_one.values():  # one model after the other: where two do not fit the memory, each is loaded once
            if alike[0].owner.packs:  # they need not be sorted, and go in their order
                self._planned.extend(fill(alike, _length, max_tokens=self._max_tokens, max_rows=self._max_rows))
                continue
            batches = pack(alike, _length, max_tokens=self._max_tokens, max_rows=self._max_rows)
            last = batches[-1]
            if len(batches) > 1 and not self._fills(last) and all(row.order >= self._seen for row in last):
                self._put_off += batches.pop()
            self._planned.extend(sorted(batches, key=lambda batch: min(map(_order, batch))))
        self._seen = rows[-1].order + 1

    def _next_rows(self) -> Iterator[Row]:
        """Those that a plan had already, and later ones up to a plan's worth; at least one. Oldest first."""
        oldest: Row | None = None
        for row in sorted(chain(self._put_off, *self._planned), key=_order):
            if self._is_wanted(row):
                oldest = oldest or row
                yield row
        while self._unplanned:
            row = self._unplanned[0]
            if oldest is not None and not self._is_near(row, oldest):
                break
            if self._is_wanted(self._unplanned.popleft()):
                oldest = oldest or row
                yield row
        self._took_all = not self._unplanned

    def _is_near(self, row: Row, oldest: Row) -> bool:
        """Whether it may pass that one."""
        rows, tokens = row.order - oldest.order + 1, row.place + len(row.ids) - oldest.place
        return self.batches_of(rows, tokens) <= self._plan_batches

    def _is_wanted(self, row: Row) -> bool:
        self._unwanted -= row.owner.ended
        return not row.owner.ended

    def _fills(self, batch: list[Row]) -> bool:
        return len(batch) == self._max_rows or len(batch[-1].ids) * (len(batch) + 1) > self._max_tokens

    def _wanted(self, batch: list[Row]) -> list[Row]:
        return [row for row in batch if self._is_wanted(row)]

    def _count(self, row: Row, sign: int) -> None:
        tokens = sign * len(row.ids)
        self.rows += sign
        self.tokens += tokens
        row.owner.waiting_rows += sign
        row.owner.waiting_tokens += tokens


def _without_ended(batches: Iterable[list[Row]]) -> deque[list[Row]]:
    wanted = ([row for row in batch if not row.owner.ended] for batch in batches)
    return deque(batch for batch in wanted if batch)


def _length(row: Row) -> int:
    return len(row.ids)


def _order(row: Row) -> int:
    return row.order
