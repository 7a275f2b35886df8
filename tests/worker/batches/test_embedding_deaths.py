"""Embedding jobs that end early, and engines that die."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from impetus_backends.protocol import Rejected
from impetus_worker.errors import PoisonedJobError
from impetus_worker.leases.outcomes import Failed, Outcome, Stopped

from .batching import BULK, drain, given, job, lengths, make_batcher, run, take, vectors, words

if TYPE_CHECKING:
    from impetus_worker.batches.embedding import EmbeddingBatcher


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
