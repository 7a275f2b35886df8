"""Generation jobs in line: those that the engine holds beyond its places, so that no place is ever empty."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from impetus_worker.batches.generation import GenerationBatcher

from .generating import INFO, admitted, begin, done, job, make_batcher, prompts, take

if TYPE_CHECKING:
    from impetus_backends import protocol


class Line:
    """A batcher of 8 places, full, after so many jobs have come and gone, one each `pace_s`."""

    def __init__(self, pace_s: float, batcher: GenerationBatcher | None = None, came: int = 20) -> None:
        self.now = 0.0
        self.batcher = batcher or make_batcher(8, clock=lambda: self.now)
        self.works = self.send(8)
        for _ in range(came):
            self.now += pace_s
            self.batcher.absorb(done(self.works.pop(0)), self.now)
            self.works += self.send(1)

    def send(self, jobs: int, *, starts: bool = True) -> list[protocol.GenerationWork]:
        take(self.batcher, [job(timeout_s=10) for _ in range(jobs)], self.now)
        works = list(iter(lambda: self.batcher.next_work(self.now), None))
        if starts:
            begin(self.batcher, works, self.now)
        return works


def test_where_places_become_free_soon_a_job_is_in_line_for_the_next() -> None:
    line = Line(pace_s=0.1)
    assert (line.batcher.room().interactive, line.batcher.room().in_line) == (0, 1)
    (next_one,) = line.send(1, starts=False)
    assert line.batcher.room().in_line == 0
    line.batcher.absorb(done(line.works[0]), line.now)
    begin(line.batcher, [next_one], line.now)
    assert (line.batcher.room().interactive, line.batcher.room().in_line) == (0, 1)


def test_nobody_is_in_line_where_places_become_free_seldom_or_that_is_not_known_yet() -> None:
    assert Line(pace_s=1.3).batcher.room().in_line == 0
    assert Line(pace_s=0.1, came=3).batcher.room().in_line == 0
    line = Line(pace_s=0.1)
    line.now += 10
    assert line.batcher.room().in_line == 0


def test_an_engine_of_several_models_which_has_places_for_each_has_no_line() -> None:
    batcher = GenerationBatcher(replace(INFO, others=(INFO,)), worker="w", max_concurrent=8, clock=lambda: 0.0)
    assert Line(0.1, batcher).batcher.room().in_line == 0


def test_a_job_in_line_loses_none_of_its_time_before_there_is_a_place_for_it() -> None:
    line = Line(pace_s=0.1)
    waiting = job(timeout_s=10)
    take(line.batcher, [waiting], line.now)
    (work,) = admitted(line.batcher)
    line.now += 2
    assert line.batcher.engine_s(waiting.id, line.now) is None
    line.batcher.absorb(done(line.works[0]), line.now)
    begin(line.batcher, [work], line.now)
    assert line.batcher.engine_s(waiting.id, line.now + 1) == 1.0


def test_a_job_whose_turn_does_not_come_goes_back_to_where_others_may_have_a_place_for_it() -> None:
    line = Line(pace_s=0.1)
    line.send(1, starts=False)
    line.now += 2.9
    assert line.batcher.out_of_line(line.now) == []
    line.now += 0.2
    (late,) = line.batcher.out_of_line(line.now)
    assert not line.batcher.has_begun(late.id)
    line.batcher.forget([late.id])
    assert line.batcher.out_of_line(line.now) == []


def test_a_job_that_got_a_place_and_has_not_begun_in_it_is_not_taken_back_and_uses_up_its_time() -> None:
    line = Line(pace_s=0.1)
    line.send(1, starts=False)
    line.batcher.absorb(done(line.works[0]), line.now)
    line.now += 11
    assert line.batcher.out_of_line(line.now) == []
    assert len(line.batcher.overdue(line.now)) == 8


def test_bulk_jobs_are_never_in_line_in_the_engine_which_would_give_them_the_places_that_are_kept() -> None:
    line = Line(pace_s=0.1)
    take(line.batcher, [job("bulk", queue="generation-bulk")], line.now)
    assert prompts(admitted(line.batcher)) == []
