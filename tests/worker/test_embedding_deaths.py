"""Embedding jobs that end before their time, engines that die or hang, and whose time is counted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from impetus_backends.protocol import Rejected
from impetus_worker.errors import JobTimeoutError, PoisonedJobError
from impetus_worker.leases.outcomes import Failed, Outcome, Stopped

from .batching import BULK, drain, given, job, lengths, make_batcher, run, take, vectors, words

if TYPE_CHECKING:
    from impetus_backends.protocol import EmbeddingWork
    from impetus_worker.batches.embedding import EmbeddingBatcher
    from impetus_worker.leases.claims import ClaimedJob


def out_of_time(late: ClaimedJob) -> Failed:
    return Failed(late, JobTimeoutError("the job ran longer than its timeout"))


def die(batcher: EmbeddingBatcher, now: float = 1000.0) -> list[Outcome]:
    return batcher.engine_died(now, suspect=True)


# -- whose rows run, and whose do not --------------------------------------------------------------------------------


def test_a_forgotten_job_has_no_rows_any_more_and_its_neighbours_have() -> None:
    batcher = make_batcher(max_tokens=20)
    doomed, neighbour = job(*[words(5)] * 8), job(words(5))
    take(batcher, [doomed, neighbour])
    work = given(batcher)
    assert batcher.has_begun(doomed.id)
    assert batcher.forget([doomed.id]) == [], "the engine need not be asked: what it makes is not used"
    assert not batcher.has_begun(doomed.id)
    assert batcher.absorb(run(work), 1000.0) == []
    works, outcomes = drain(batcher)
    assert [lengths(work) for work in works] == [[5]]
    assert [outcome.job for outcome in outcomes] == [neighbour]


def test_jobs_that_are_not_read_yet_are_forgotten_too() -> None:
    batcher = make_batcher()
    doomed, kept = job("1"), job("2", queue=BULK)
    batcher.add([doomed, kept])
    batcher.forget([doomed.id])
    assert batcher.read(0.0) == []
    assert [outcome.job for outcome in drain(batcher)[1]] == [kept]


@pytest.mark.parametrize("suspect", [False, True])
def test_rows_of_a_cancelled_job_do_not_run_again_after_a_death(suspect: bool) -> None:
    batcher = make_batcher(max_tokens=20)
    cancelled, neighbour = job(words(5, 1), words(5, 2)), job(words(5, 3))
    take(batcher, [cancelled, neighbour])
    given(batcher)
    assert batcher.interrupt(Stopped(cancelled)) == ([], [Stopped(cancelled)])
    assert batcher.engine_died(1000.0, suspect=suspect) == []
    works, outcomes = drain(batcher)
    assert [lengths(work) for work in works] == [[5]]
    assert [vectors(outcome) for outcome in outcomes] == [[[5, 3, 0, 0]]]


def test_a_cancelled_suspect_does_not_run_again() -> None:
    batcher = make_batcher(max_tokens=20)
    cancelled, neighbour = job(words(5, 1)), job(words(5, 2))
    take(batcher, [cancelled, neighbour])
    for _ in range(2):
        given(batcher)
        die(batcher)
    batcher.forget([cancelled.id])
    works, outcomes = drain(batcher)
    assert [lengths(work) for work in works] == [[5]]
    assert [outcome.job for outcome in outcomes] == [neighbour]


def test_a_job_that_is_cancelled_while_its_batch_becomes_suspect_does_not_run_again() -> None:
    batcher = make_batcher(max_tokens=20)
    cancelled = job(words(5, 1))
    take(batcher, [cancelled, job(words(5, 2)), job(words(5, 3))])
    given(batcher)
    die(batcher)
    given(batcher)
    batcher.forget([cancelled.id])
    die(batcher)
    assert sorted(int(row[0]) for work in drain(batcher)[0] for row in work.rows) == [2, 3]


def test_a_suspect_that_is_cancelled_while_it_runs_does_not_run_again() -> None:
    batcher = make_batcher(max_tokens=20)
    cancelled = job(words(5, 1))
    take(batcher, [cancelled, job(words(5, 2)), job(words(5, 3)), job(words(5, 4))])
    for _ in range(2):
        given(batcher)
        die(batcher)
    assert [int(row[0]) for row in given(batcher).rows] == [1, 2]
    batcher.forget([cancelled.id])
    batcher.engine_died(1000.0, suspect=False)
    assert sorted(int(row[0]) for work in drain(batcher)[0] for row in work.rows) == [2, 3, 4]


def test_a_job_claimed_again_while_its_earlier_run_is_in_the_engine_gets_vectors_of_its_own_run() -> None:
    batcher = make_batcher(max_tokens=20)
    twice = job(words(5, 1))
    take(batcher, [twice])
    earlier = given(batcher)
    batcher.forget([twice.id])
    take(batcher, [twice])
    assert batcher.absorb(run(earlier), 1000.0) == []
    assert [outcome.job for outcome in drain(batcher)[1]] == [twice]


# -- deaths ----------------------------------------------------------------------------------------------------------


def test_after_one_death_rows_run_together_again_and_first() -> None:
    batcher = make_batcher(max_tokens=20)
    take(batcher, [job(words(5)) for _ in range(4)])
    first = given(batcher)
    take(batcher, [job(words(4)) for _ in range(8)])
    second = given(batcher)
    assert die(batcher) == []
    assert [lengths(given(batcher)), lengths(given(batcher))] == [lengths(first), lengths(second)]


def test_from_the_second_death_suspects_run_alone_and_the_poison_is_found() -> None:
    batcher = make_batcher(max_tokens=1000)
    jobs = [job(str(number)) for number in range(8)]
    take(batcher, jobs)
    outcomes: list[Outcome] = []
    deaths = 0
    while (work := batcher.next_work(1000.0)) is not None:
        assert deaths < 2 or batcher.next_work(1000.0) is None, "a suspect has company"
        if any(row[0] == 5 for row in work.rows):
            deaths += 1
            outcomes += die(batcher)
        else:
            outcomes += batcher.absorb(run(work), 1000.0)
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert [outcome.job for outcome in failed] == [jobs[5]]
    assert isinstance(failed[0].error, PoisonedJobError)
    assert len(outcomes) == 8
    assert deaths <= 8


def test_a_batch_that_waits_behind_another_is_innocent_of_a_death() -> None:
    batcher = make_batcher(max_tokens=20)
    take(batcher, [job(words(10, 1), words(10, 1)), job(words(10, 2), words(10, 2))])
    for _ in range(2):
        given(batcher)
        waits = given(batcher)
        assert waits.rows[0][0] == 2
        die(batcher)
    works, _ = drain(batcher)
    assert [lengths(work) for work in works] == [[10, 10], [10], [10]], "only what had begun is run in halves"


def test_bulk_is_neither_claimed_nor_run_while_suspects_wait() -> None:
    batcher = make_batcher(max_tokens=20)
    take(batcher, [job(words(10, 1), words(10, 1), queue=BULK)])
    for _ in range(2):
        given(batcher)
        die(batcher)
    take(batcher, [job(*[words(5, 2)] * 4, queue=BULK)])
    assert batcher.room().bulk == 0
    group = given(batcher)
    assert group.rows[0][0] == 1
    assert batcher.room().bulk == 0
    assert batcher.next_work(1000.0) is None, "nothing beside suspects"
    batcher.absorb(run(group), 1000.0)
    works, outcomes = drain(batcher)
    assert [int(work.rows[0][0]) for work in works] == [1, 2]
    assert len(outcomes) == 2
    assert batcher.room().bulk > 0


def test_interactive_batches_run_between_groups_of_bulk_suspects() -> None:
    batcher = make_batcher(max_tokens=20)
    take(batcher, [job(*[words(5, 1)] * 4, queue=BULK)])
    for _ in range(2):
        assert not given(batcher).urgent
        die(batcher)
    order = []
    for _ in range(5):
        take(batcher, [job(*[words(10, 2)] * 4)])
        work = given(batcher)
        order.append(int(work.rows[0][0]))
        assert len(order) == 5 or batcher.next_work(1000.0) is None, "one at a time, for a suspect to follow"
        batcher.absorb(run(work), 1000.0)
    assert order == [2, 1, 2, 1, 2], "each has its turn, whatever comes"


def test_suspects_of_the_interactive_lane_do_not_wait_for_those_of_bulk() -> None:
    batcher = make_batcher(max_tokens=20)
    take(batcher, [job(*[words(5, 1)] * 4, queue=BULK)])
    for _ in range(2):
        given(batcher)
        die(batcher)
    take(batcher, [job(*[words(5, 2)] * 4)])
    order = []
    for _ in range(8):
        work = given(batcher)
        order.append(int(work.rows[0][0]))
        die(batcher)
    assert order[:2] == [2, 1]
    assert order.count(2) >= 3


def test_suspects_remain_suspects_when_the_engine_is_ended_on_purpose_or_rejects_them() -> None:
    batcher = make_batcher(max_tokens=20)
    take(batcher, [job(*[words(5, word)]) for word in range(1, 5)])
    for _ in range(2):
        given(batcher)
        die(batcher)
    assert lengths(given(batcher)) == [5, 5]
    batcher.engine_died(1000.0, suspect=False)
    group = given(batcher)
    assert lengths(group) == [5, 5]
    assert batcher.absorb(Rejected(group.id, "device", permanent=False), 1000.0) == []
    assert lengths(given(batcher)) == [5]
    assert batcher.next_work(1000.0) is None


def test_when_the_engine_was_ended_on_purpose_its_work_runs_again_as_it_was() -> None:
    batcher = make_batcher(max_tokens=20)
    take(batcher, [job(*[words(10)] * 6, queue=BULK)])
    for _ in range(3):
        given(batcher), given(batcher)
        assert batcher.engine_died(1.0, suspect=False) == []
    works, outcomes = drain(batcher)
    assert len(works) == 3
    assert len(outcomes) == 1


def test_a_lone_text_that_kills_the_engine_three_times_is_poison() -> None:
    batcher = make_batcher()
    poison = job("1")
    take(batcher, [poison])
    for _ in range(2):
        given(batcher)
        assert die(batcher) == []
    given(batcher)
    (outcome,) = die(batcher)
    assert outcome.job is poison
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, PoisonedJobError)
    assert batcher.next_work(1000.0) is None


def test_a_text_with_a_batch_behind_it_was_not_alone() -> None:
    batcher = make_batcher(max_tokens=20)
    first = job(words(20, 1))
    take(batcher, [first, job(words(20, 2))])
    for _ in range(2):
        given(batcher)
        assert batcher.next_work(1000.0) is not None
        assert die(batcher) == []
    outcomes: list[Outcome] = []
    deaths_alone = 0
    while not outcomes:
        work = given(batcher)
        if work.rows[0][0] == 1:
            deaths_alone += 1
            outcomes += die(batcher)
        else:
            batcher.absorb(run(work), 1000.0)
    assert deaths_alone == 3
    assert [outcome.job for outcome in outcomes] == [first]


def test_a_death_of_an_engine_that_held_nothing_blames_nobody() -> None:
    batcher = make_batcher()
    take(batcher, [job("1")])
    for _ in range(5):
        assert die(batcher) == []
    assert len(drain(batcher)[1]) == 1


# -- what the engine has begun ---------------------------------------------------------------------------------------


def two_batches(batcher: EmbeddingBatcher, *jobs: ClaimedJob) -> list[EmbeddingWork]:
    take(batcher, list(jobs))
    return [given(batcher, 10.0), given(batcher, 10.0)]


def test_the_oldest_batch_has_begun_and_the_next_one_when_that_is_done() -> None:
    batcher = make_batcher(max_tokens=20)
    first, second = job(words(20), queue=BULK), job(words(20), queue=BULK)
    assert batcher.begun() == set()
    works = two_batches(batcher, first, second)
    assert batcher.begun() == {first.id}
    assert (batcher.has_begun(first.id), batcher.has_begun(second.id)) == (True, False)
    batcher.absorb(run(works[0]), 11.0)
    assert batcher.begun() == {second.id}
    batcher.absorb(run(works[1]), 12.0)
    assert batcher.begun() == set()


def test_a_job_that_has_ended_is_not_to_blame_though_its_rows_run_on() -> None:
    batcher = make_batcher(max_tokens=20)
    ended, other = job(words(10)), job(words(10))
    take(batcher, [ended, other])
    given(batcher)
    batcher.forget([ended.id])
    assert batcher.begun() == {other.id}


def test_an_urgent_batch_passes_the_one_that_waits() -> None:
    batcher = make_batcher(max_tokens=20)
    works = two_batches(batcher, job(words(20), queue=BULK), job(words(20), queue=BULK))
    urgent = job(words(20))
    take(batcher, [urgent])
    given(batcher)
    batcher.absorb(run(works[0]), 11.0)
    assert batcher.begun() == {urgent.id}


def test_a_job_with_vectors_has_begun_though_the_engine_has_nothing_of_it_now() -> None:
    batcher = make_batcher(max_tokens=20)
    begun = job(words(20), words(20))
    take(batcher, [begun])
    batcher.absorb(run(given(batcher)), 1000.0)
    assert batcher.begun() == set()
    assert batcher.has_begun(begun.id)


# -- time ------------------------------------------------------------------------------------------------------------


def test_a_jobs_time_is_what_the_engine_spends_on_it_and_not_what_it_waits() -> None:
    batcher = make_batcher(max_tokens=20)
    first, second = job(words(20), timeout_s=5), job(words(20), timeout_s=5)
    works = two_batches(batcher, first, second)
    assert (batcher.engine_s(first.id, 14.0), batcher.engine_s(second.id, 14.0)) == (4.0, None)
    assert batcher.overdue(15.0) == []
    assert batcher.overdue(15.5) == [first]
    batcher.absorb(run(works[0]), 20.0)
    assert batcher.overdue(24.0) == []
    assert batcher.engine_s(second.id, 24.0) == 4.0
    assert batcher.overdue(26.0) == [second]


def test_a_job_of_many_batches_is_charged_for_its_own_alone() -> None:
    batcher = make_batcher(max_tokens=20)
    long, other = job(words(20), words(20), timeout_s=5), job(words(20))
    take(batcher, [long, other])
    now = 0.0
    for work_s in (3.0, 3.0):
        work = given(batcher, now)
        now += work_s
        batcher.absorb(run(work), now)
        now += 100.0
    assert batcher.engine_s(long.id, now) is None or batcher.engine_s(long.id, now) == 6.0
    assert not batcher.begun()


def test_a_batch_that_ran_before_one_that_was_thought_to_is_charged_with_its_time() -> None:
    batcher = make_batcher(max_tokens=20)
    patient = job(words(20), words(20), queue=BULK)
    works = two_batches(batcher, job(words(20), queue=BULK), patient)
    urgent = job(words(20), words(20))
    take(batcher, [urgent])
    given(batcher, 10.0)
    batcher.absorb(run(works[0]), 11.0)
    batcher.absorb(run(works[1]), 15.0)
    assert batcher.engine_s(patient.id, 15.0) == 4.0
    assert batcher.engine_s(urgent.id, 17.0) == 2.0


def test_jobs_without_a_timeout_are_never_overdue() -> None:
    batcher = make_batcher(max_tokens=20)
    take(batcher, [job(words(20), timeout_s=-1)])
    given(batcher, 0.0)
    assert batcher.overdue(1e9) == []


def test_time_counts_on_when_the_engine_is_ended_on_purpose_and_anew_when_it_died() -> None:
    batcher = make_batcher(max_tokens=20)
    late = job(words(20), timeout_s=5)
    take(batcher, [late])
    given(batcher, 10.0)
    batcher.engine_died(13.0, suspect=False)
    assert batcher.engine_s(late.id, 20.0) == 3.0
    given(batcher, 20.0)
    assert batcher.overdue(22.5) == [late]
    batcher.engine_died(22.5, suspect=True)
    given(batcher, 30.0)
    assert batcher.engine_s(late.id, 31.0) == 1.0


# -- patience --------------------------------------------------------------------------------------------------------


def warmed_up(max_tokens: int = 20, device_s: float = 2.0) -> EmbeddingBatcher:
    """A batcher that knows what a batch costs."""
    batcher = make_batcher(max_tokens=max_tokens)
    take(batcher, [job(words(max_tokens))])
    batcher.absorb(run(given(batcher), device_s), 0.0)
    return batcher


def test_an_engine_that_holds_nothing_may_be_silent_for_ever() -> None:
    batcher = make_batcher()
    assert not batcher.has_work
    assert batcher.patience_s(0.0) == math.inf
    take(batcher, [job("1")])
    assert not batcher.has_work
    work = given(batcher)
    assert batcher.has_work
    batcher.absorb(run(work), 1000.0)
    assert not batcher.has_work


def test_an_engine_is_given_several_times_what_its_batch_should_cost() -> None:
    batcher = warmed_up(device_s=20.0)
    take(batcher, [job(words(20))])
    given(batcher)
    assert batcher.patience_s(0.0) == 200.0


def test_a_larger_batch_than_those_before_is_given_more_in_proportion() -> None:
    batcher = make_batcher(max_tokens=20)
    take(batcher, [job("1")])
    batcher.absorb(run(given(batcher), 10.0), 0.0)
    take(batcher, [job(words(20))])
    given(batcher)
    assert batcher.patience_s(0.0) == 2000.0


def test_quick_batches_are_given_a_minute_and_the_very_first_one_minutes() -> None:
    batcher = make_batcher()
    take(batcher, [job(words(20))])
    given(batcher)
    assert batcher.patience_s(0.0) == 300.0
    batcher = warmed_up(device_s=0.01)
    take(batcher, [job(words(20))])
    given(batcher)
    assert batcher.patience_s(0.0) == 60.0


def test_cancelling_a_job_shortens_patience_only_where_nobody_else_wants_the_batch() -> None:
    batcher = warmed_up(device_s=20.0)
    cancelled, neighbour = job(words(10)), job(words(10))
    take(batcher, [cancelled, neighbour])
    given(batcher)
    batcher.interrupt(Stopped(cancelled))
    assert batcher.patience_s(0.0) == 200.0
    batcher.interrupt(Stopped(neighbour))
    assert batcher.patience_s(0.0) == 45.0, "as long as the batch should take is healthy"


def test_cancelling_the_very_first_job_does_not_end_a_healthy_engine() -> None:
    batcher = make_batcher()
    cancelled = job(words(20))
    take(batcher, [cancelled])
    given(batcher)
    batcher.interrupt(Stopped(cancelled))
    assert batcher.patience_s(0.0) == 300.0


def test_a_job_that_ran_out_of_time_in_the_engine_leaves_it_what_the_batch_should_cost_and_five_seconds() -> None:
    batcher = make_batcher(max_tokens=20)
    late, neighbour = job(words(10), timeout_s=1), job(words(10))
    take(batcher, [late, neighbour])
    given(batcher)
    batcher.interrupt(out_of_time(late))
    assert batcher.patience_s(0.0) == 5.0
    batcher = warmed_up(device_s=2.0)
    take(batcher, [late, neighbour])
    given(batcher)
    batcher.interrupt(out_of_time(late))
    assert batcher.patience_s(0.0) == 9.0
    assert batcher.engine_died(0.0, suspect=True) == []
    assert [outcome.job for outcome in drain(batcher)[1]] == [neighbour]
