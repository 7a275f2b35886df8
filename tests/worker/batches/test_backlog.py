"""The order in which rows that wait reach the device: sorted by length, and none passed by too many later ones."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from impetus_producer.contract import EmbeddingRequest
from impetus_worker.batches.planning.backlog import Backlog, OpenEmbedding, Row

from .batching import INFO, job

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_TOKENS, MAX_ROWS, PLAN_BATCHES = 64, 8, 3


def make_backlog() -> Backlog:
    return Backlog(max_rows=MAX_ROWS, max_tokens=MAX_TOKENS, plan_batches=PLAN_BATCHES)


def rows_of(lengths: Sequence[int]) -> list[Row]:
    """The rows of a job of its own."""
    request = EmbeddingRequest(input=["x"])
    owner = OpenEmbedding(job("1"), request, INFO, sum(lengths), 0, 0, np.empty(0), len(lengths), urgent=True)
    return [Row(owner, index, np.zeros(length, np.int32), index) for index, length in enumerate(lengths)]


JOBS = st.lists(st.lists(st.integers(1, 80), min_size=1, max_size=12), min_size=1, max_size=60)


@given(JOBS, st.data())
def test_no_row_is_passed_by_more_than_a_plan_of_later_ones(jobs: list[list[int]], data: st.DataObject) -> None:
    backlog, order, waiting = make_backlog(), itertools.count(), dict[Row, int]()
    passed: dict[Row, list[int]] = {}
    for lengths in jobs:
        rows = rows_of(lengths)
        backlog.add(rows)
        waiting |= {row: next(order) for row in rows}
        for _ in range(data.draw(st.integers(0, 3))):
            if backlog.rows:
                _take(backlog, waiting, passed)
    while backlog.rows:
        _take(backlog, waiting, passed)
    assert not waiting
    for later in passed.values():
        assert len(later) <= PLAN_BATCHES * MAX_ROWS
        assert sum(later) - max(later) <= PLAN_BATCHES * MAX_TOKENS, "one that is longer than the budget aside"


def _take(backlog: Backlog, waiting: dict[Row, int], passed: dict[Row, list[int]]) -> None:
    """Takes the next batch, and notes whom its rows pass."""
    batch = backlog.take()
    assert len(batch) == 1 or max(len(row.ids) for row in batch) * len(batch) <= MAX_TOKENS
    orders = {row: waiting.pop(row) for row in batch}
    for row, order in orders.items():
        for other, its_order in waiting.items():
            if its_order < order:
                passed.setdefault(other, []).append(len(row.ids))
    assert backlog.rows == len(waiting)
    assert backlog.tokens == sum(len(row.ids) for row in waiting)


def test_a_standing_backlog_of_short_rows_does_not_keep_a_long_one_waiting() -> None:
    backlog = make_backlog()
    (long,) = rows_of([60])
    backlog.add([long, *rows_of([4] * 20)])
    batches = 0
    while long.owner.waiting_rows:
        backlog.add(rows_of([4] * 8))
        backlog.take()
        batches += 1
    assert batches <= PLAN_BATCHES


def test_rows_beyond_a_plan_pass_none_in_it() -> None:
    backlog = Backlog(max_rows=8, max_tokens=64, plan_batches=2)
    (row,) = rows_of([4])
    backlog.add([*rows_of([1, 2, 3, 5, 6, 7, 8]), row])
    for _ in range(7):
        backlog.add(rows_of([1, 2, 3, 4, 5, 6, 7, 8]))
    passing = 0
    while row not in (batch := backlog.take()):
        passing += len(batch)
    assert passing <= 2 * 8


def test_rows_that_were_put_off_come_again_in_their_order() -> None:
    backlog = make_backlog()
    first, second = rows_of([20, 20])
    backlog.add([*rows_of([8] * 8), first, second])
    assert len(backlog.take()) == 8
    assert backlog.take() == [first, second]


def test_the_batch_with_the_oldest_row_goes_first() -> None:
    backlog = make_backlog()
    backlog.add([row for length in (60, 4, 4, 4, 4) for row in rows_of([length])])
    assert [len(row.ids) for row in backlog.take()] == [60]


def test_a_row_is_put_off_once_and_no_more() -> None:
    backlog = make_backlog()
    (long,) = rows_of([30])
    backlog.add([*rows_of([8] * 8), long])
    assert long not in backlog.take()
    backlog.add(rows_of([8] * 8))
    assert long in backlog.take(), "the oldest now"


def test_rows_that_come_beside_a_plan_are_packed_with_what_is_left_of_it() -> None:
    backlog = make_backlog()
    backlog.add(rows_of([8] * 8 + [10, 30, 30]))
    assert len(backlog.take()) == 8
    backlog.add(rows_of([10, 30]))
    batches = []
    while backlog.rows:
        batches.append([len(row.ids) for row in backlog.take()])
    assert batches == [[10, 10], [30, 30], [30]]


def test_what_runs_again_is_planned_with_nothing_that_comes() -> None:
    backlog = make_backlog()
    backlog.add(rows_of([4, 4]))
    half = backlog.take()[:1]
    backlog.put_first(half)
    backlog.add(rows_of([4] * 20))
    assert backlog.take() == half


def test_rows_of_ended_jobs_are_neither_counted_nor_run() -> None:
    backlog = make_backlog()
    doomed, kept = rows_of([4] * 20), rows_of([8] * 8)
    backlog.add([*doomed, *kept])
    backlog.take()
    doomed[0].owner.ended = True
    backlog.forget(doomed[0].owner)
    assert (backlog.rows, backlog.tokens) == (8, 64)
    assert [*backlog.take(), *backlog.take()] == kept
    assert (backlog.rows, backlog.tokens) == (0, 0)


@given(JOBS, st.data())
def test_the_books_stay_right_whoever_ends(jobs: list[list[int]], data: st.DataObject) -> None:
    backlog, waiting, owners = make_backlog(), set[Row](), list[OpenEmbedding]()
    for lengths in jobs:
        rows = rows_of(lengths)
        owners.append(rows[0].owner)
        backlog.add(rows)
        waiting |= set(rows)
        match data.draw(st.sampled_from(["take", "again", "end", "nothing"])):
            case "take" if backlog.rows:
                waiting -= set(backlog.take())
            case "again" if backlog.rows:
                backlog.put_first(backlog.take())
            case "end":
                ended = owners.pop(data.draw(st.integers(0, len(owners) - 1)))
                ended.ended = True
                backlog.forget(ended)
                waiting = {row for row in waiting if row.owner is not ended}
        assert (backlog.rows, backlog.tokens) == (len(waiting), sum(len(row.ids) for row in waiting))
    while backlog.rows:
        batch = set(backlog.take())
        assert batch
        assert batch <= waiting
        waiting -= batch
    assert not waiting


class Counted(OpenEmbedding):
    """Counts how often it is asked whether it has ended."""

    asked = 0

    @property
    def ended(self) -> bool:
        Counted.asked += 1
        return self.truncated < 0

    @ended.setter
    def ended(self, ended: bool) -> None:
        self.truncated = -1 if ended else 0


def test_ending_many_jobs_looks_at_each_row_about_once() -> None:
    backlog, owners = make_backlog(), []
    for _ in range(200):
        owner = Counted(job("1"), EmbeddingRequest(input=["x"]), INFO, 256, 0, 0, np.empty(0), 64, urgent=True)
        owners.append(owner)
        backlog.add(Row(owner, index, np.zeros(4, np.int32), index) for index in range(64))
    Counted.asked = 0
    for owner in owners[:150]:
        owner.ended = True
        backlog.forget(owner)
    assert backlog.rows == 50 * 64
    assert Counted.asked <= 2 * 150 * 64
