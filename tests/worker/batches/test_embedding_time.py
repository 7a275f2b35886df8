"""What the engine has begun, whose time passes, and how long a silent engine is waited for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from impetus_worker.leases.outcomes import Stopped

from .batching import BULK, drain, given, job, make_batcher, out_of_time, run, take, words

if TYPE_CHECKING:
    from impetus_backends.protocol import EmbeddingWork
    from impetus_worker.batches.embedding import EmbeddingBatcher
    from impetus_worker.leases.claims import ClaimedJob


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
