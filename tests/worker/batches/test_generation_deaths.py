"""Generation jobs whose engine dies or is ended, and whose time passes."""

from __future__ import annotations

import math
from dataclasses import replace

from impetus_backends import protocol
from impetus_backends.protocol import Parked
from impetus_worker.batches.batcher import Room
from impetus_worker.errors import PoisonedJobError
from impetus_worker.leases.outcomes import Failed, Finished, News, Stopped

from .generating import BULK, admitted, begin, cut, done, job, make_batcher, prompts, take


def test_after_deaths_the_poison_is_found_and_the_others_finish() -> None:
    batcher = make_batcher(8)
    jobs = [job(str(number)) for number in range(8)]
    take(batcher, jobs, 0.0)
    outcomes: list[News] = []
    for _ in range(100):
        works = admitted(batcher)
        if any(work.prompt == "3" for work in works):
            outcomes += batcher.engine_died(1.0, suspect=True)
        else:
            for work in works:
                outcomes += batcher.absorb(done(work), 1.0)
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert [(outcome.job, type(outcome.error)) for outcome in failed] == [(jobs[3], PoisonedJobError)]
    assert len(outcomes) == 8
    assert batcher.room().interactive == 8


def test_an_engine_ended_on_purpose_gets_its_work_again() -> None:
    batcher = make_batcher()
    take(batcher, [job("a"), job("b")], 0.0)
    admitted(batcher)
    assert batcher.engine_died(1.0, suspect=False) == []
    assert [work.prompt for work in admitted(batcher)] == ["a", "b"]


def test_after_one_death_all_run_together_again() -> None:
    batcher = make_batcher(16)
    take(batcher, [job(str(number)) for number in range(16)])
    works = admitted(batcher)
    begin(batcher, works)
    assert batcher.engine_died(1.0, suspect=True) == []
    assert prompts(admitted(batcher)) == prompts(works)


def test_from_the_second_death_those_that_met_both_run_in_halves_with_nothing_beside_them() -> None:
    batcher = make_batcher(8)
    take(batcher, [job(str(number)) for number in range(4)])
    for _ in range(2):
        begin(batcher, admitted(batcher))
        batcher.engine_died(1.0, suspect=True)
    take(batcher, [job("new")])
    assert batcher.room().bulk == 0
    groups = []
    while works := admitted(batcher):
        groups.append(prompts(works))
        begin(batcher, works)
        for work in works:
            batcher.absorb(done(work), 1.0)
    assert groups == [["new"], ["0", "1"], ["2", "3"]]
    assert batcher.room() == Room(8, 7, ahead=4)


def test_interactive_jobs_run_between_groups_of_bulk_suspects_and_do_not_keep_them_waiting_for_ever() -> None:
    batcher = make_batcher(8)
    take(batcher, [job("bulk", queue=BULK) for _ in range(4)])
    for _ in range(2):
        begin(batcher, admitted(batcher))
        batcher.engine_died(1.0, suspect=True)
    groups = []
    for _ in range(5):
        take(batcher, [job("interactive")])
        works = admitted(batcher)
        begin(batcher, works)
        take(batcher, [job("interactive")])
        groups.append(set(prompts(works)))
        assert len(groups) == 5 or admitted(batcher) == [], "who comes later waits for the next turn"
        for work in works:
            batcher.absorb(done(work), 1.0)
    assert groups == [{"interactive"}, {"bulk"}, {"interactive"}, {"bulk"}, {"interactive"}]


def test_bulk_that_is_not_suspected_waits_until_no_more_are() -> None:
    batcher = make_batcher(8)
    take(batcher, [job("suspect")])
    for _ in range(2):
        begin(batcher, admitted(batcher))
        batcher.engine_died(1.0, suspect=True)
    take(batcher, [job("bulk", queue=BULK)])
    (work,) = admitted(batcher)
    assert work.prompt == "suspect"
    batcher.absorb(done(work), 1.0)
    assert prompts(admitted(batcher)) == ["bulk"]


def test_what_the_engine_had_not_begun_is_no_suspect_when_it_dies() -> None:
    batcher = make_batcher(4)
    begun = job("begun")
    take(batcher, [begun, job("not begun")])
    for _ in range(2):
        works = admitted(batcher)
        assert prompts(works) == ["begun", "not begun"]
        begin(batcher, works[:1])
        assert batcher.begun() == {begun.id}
        batcher.engine_died(1.0, suspect=True)
    for _ in range(3):
        (work,) = admitted(batcher)
        if work.prompt == "not begun":
            batcher.absorb(done(work), 1.0)
            (work,) = admitted(batcher)
        begin(batcher, [work])
        news = batcher.engine_died(1.0, suspect=True)
    assert isinstance(news[-1], Failed)
    assert isinstance(news[-1].error, PoisonedJobError)


def test_what_never_begins_is_to_blame_where_nothing_else_has() -> None:
    batcher = make_batcher(4)
    take(batcher, [job("kills"), job("innocent")])
    news: list[News] = []
    for _ in range(10):
        works = admitted(batcher)
        if "kills" in prompts(works):
            news += batcher.engine_died(1.0, suspect=True)
        else:
            news += [each for work in works for each in batcher.absorb(done(work), 1.0)]
    assert [type(each) for each in news] == [Finished, Failed], "the innocent one is not kept waiting"


def test_a_suspect_whose_engine_was_ended_on_purpose_runs_alone_again() -> None:
    batcher = make_batcher(4)
    take(batcher, [job("suspect", queue=BULK)])
    for _ in range(2):
        begin(batcher, admitted(batcher))
        batcher.engine_died(1.0, suspect=True)
    begin(batcher, admitted(batcher))
    batcher.engine_died(1.0, suspect=False)
    take(batcher, [job("other", queue=BULK)])
    assert prompts(admitted(batcher)) == ["suspect"]


def test_a_job_that_waited_for_its_model_when_the_engine_ended_takes_a_place_again() -> None:
    batcher = make_batcher(4)
    take(batcher, [job()])
    (work,) = admitted(batcher)
    batcher.absorb(Parked(work.id), 1.0)
    assert batcher.room().interactive == 4
    batcher.engine_died(1.0, suspect=False)
    assert batcher.room().interactive == 3


def test_a_job_that_waits_to_run_again_is_innocent_of_a_death_that_comes_before_it_has_begun() -> None:
    batcher = make_batcher(4)
    twice, new = job("twice"), job("new")
    take(batcher, [twice])
    begin(batcher, admitted(batcher))
    assert batcher.has_begun(twice.id)
    batcher.engine_died(1.0, suspect=False)
    assert not batcher.has_begun(twice.id)
    take(batcher, [new])
    begin(batcher, admitted(batcher)[1:])
    assert batcher.begun() == {new.id}


def test_time_counts_from_when_the_engine_has_a_job_even_if_it_never_begins() -> None:
    batcher = make_batcher()
    endless = job("a chat template that never ends", timeout_s=5)
    take(batcher, [endless])
    assert batcher.engine_s(endless.id, 50.0) is None
    batcher.next_work(100.0)
    assert batcher.engine_s(endless.id, 104.0) == 4.0
    assert batcher.overdue(105.0) == []
    assert batcher.overdue(106.0) == [endless]
    works, _ = batcher.interrupt(Failed(endless, ValueError("out of time")))
    assert len(works) == 1
    assert batcher.overdue(107.0) == [], "once is enough"
    assert batcher.patience_s(107.0) == 15.0


def test_time_counts_on_when_a_job_or_another_begins() -> None:
    batcher = make_batcher()
    first, second = job(), job()
    take(batcher, [first, second])
    works = [work for work in (batcher.next_work(0.0), batcher.next_work(0.0)) if work is not None]
    begin(batcher, works[:1], 3.0)
    begin(batcher, works[1:], 4.0)
    assert (batcher.engine_s(first.id, 6.0), batcher.engine_s(second.id, 6.0)) == (6.0, 6.0)


def test_time_does_not_count_while_a_job_waits_for_its_model_or_behind_the_loading_of_another() -> None:
    batcher = make_batcher()
    parked, behind = job("parked", timeout_s=5), job("behind", timeout_s=5)
    take(batcher, [parked, behind])
    first, second = batcher.next_work(0.0), batcher.next_work(0.0)
    assert first is not None
    assert second is not None
    batcher.absorb(Parked(first.id), 1.0)
    late = job("late", timeout_s=5)
    take(batcher, [late])
    batcher.next_work(50.0)
    assert batcher.overdue(100.0) == []
    batcher.absorb(protocol.Started(second.id), 101.0)
    assert (batcher.engine_s(behind.id, 103.0), batcher.engine_s(late.id, 103.0)) == (3.0, 2.0)
    batcher.absorb(protocol.Started(first.id), 110.0)
    assert batcher.engine_s(parked.id, 112.0) == 3.0


def test_time_counts_anew_after_a_death_and_on_when_the_engine_was_ended_on_purpose() -> None:
    batcher = make_batcher()
    asked = job()
    take(batcher, [asked])
    begin(batcher, [work for work in [batcher.next_work(0.0)] if work is not None], 0.0)
    batcher.engine_died(3.0, suspect=False)
    assert batcher.engine_s(asked.id, 10.0) == 3.0
    batcher.next_work(10.0)
    assert batcher.engine_s(asked.id, 11.0) == 4.0
    batcher.engine_died(11.0, suspect=True)
    batcher.next_work(20.0)
    assert batcher.engine_s(asked.id, 21.0) == 1.0


def test_a_silent_engine_is_given_a_minute_for_a_step_and_for_ever_when_it_holds_nothing() -> None:
    batcher = make_batcher()
    stopped = job()
    take(batcher, [stopped])
    assert batcher.patience_s(0.0) == math.inf
    (work,) = admitted(batcher)
    assert batcher.patience_s(0.0) == 60.0
    batcher.interrupt(Stopped(stopped))
    assert batcher.patience_s(0.0) == 60.0, "a slow step is no fault"
    batcher.absorb(cut(work, ""), 1.0)
    assert not batcher.has_work


def test_a_forgotten_suspect_does_not_run() -> None:
    batcher = make_batcher(8)
    jobs = [job(str(number)) for number in range(4)]
    take(batcher, jobs)
    for _ in range(2):
        begin(batcher, admitted(batcher))
        batcher.engine_died(1.0, suspect=True)
    works = admitted(batcher)
    batcher.forget([jobs[3].id])
    for work in works:
        batcher.absorb(done(work), 1.0)
    assert prompts(admitted(batcher)) == ["2"]


def test_a_job_that_met_two_deaths_of_workers_runs_alone_and_if_bulk_it_keeps_no_caller_waiting() -> None:
    batcher = make_batcher()
    take(batcher, [job("runs", queue="generation-bulk")])
    (running,) = admitted(batcher)
    take(
        batcher,
        [
            replace(job("suspect", queue="generation-bulk"), deaths=2),
            job("urgent"),
            job("later", queue="generation-bulk"),
        ],
    )
    (urgent,) = admitted(batcher)
    assert urgent.prompt == "urgent"
    for work in (running, urgent):
        batcher.absorb(done(work), 1.0)
    (suspect,) = admitted(batcher)
    assert suspect.prompt == "suspect"
    batcher.absorb(done(suspect), 1.0)
    assert prompts(admitted(batcher)) == ["later"]


def test_a_suspect_whose_caller_waits_is_next_as_soon_as_nothing_runs() -> None:
    batcher = make_batcher()
    take(batcher, [job("runs")])
    (running,) = admitted(batcher)
    take(batcher, [replace(job("suspect"), deaths=2), job("other")])
    assert admitted(batcher) == []
    batcher.absorb(done(running), 1.0)
    assert len(admitted(batcher)) == 1
