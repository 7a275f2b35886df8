"""Micro-batching across jobs, without Redis, processes or models."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from impetus_backends.protocol import Rejected
from impetus_producer.contract import EmbeddingResult
from impetus_worker.errors import InferenceError, InvalidRequestError
from impetus_worker.leases.outcomes import Failed, Finished, Outcome

from .batching import BULK, drain, error, given, job, lengths, make_batcher, run, take, vectors, words

if TYPE_CHECKING:
    from collections.abc import Sequence


def test_texts_of_several_jobs_share_a_batch_and_each_job_gets_its_own_vectors() -> None:
    batcher = make_batcher()
    jobs = [job(words(2, 5), words(3, 6)), job(words(2, 8))]
    assert take(batcher, jobs, 0.0) == []
    works, outcomes = drain(batcher)
    assert len(works) == 1
    by_job = {outcome.job.id: vectors(outcome) for outcome in outcomes}
    assert by_job == {jobs[0].id: [[2, 5, 0, 0], [3, 6, 0, 0]], jobs[1].id: [[2, 8, 0, 0]]}


def test_the_first_text_opens_a_window_and_later_ones_do_not_extend_it() -> None:
    batcher = make_batcher(max_wait_s=1.0)
    take(batcher, [job("1")], now=10.0)
    assert batcher.wakes_at() == 11.0
    take(batcher, [job("2")], now=10.9)
    assert batcher.wakes_at() == 11.0
    assert batcher.next_work(10.99) is None
    work = batcher.next_work(11.0)
    assert work is not None
    assert len(work.rows) == 2


def test_a_full_batch_does_not_wait_for_the_window() -> None:
    batcher = make_batcher(max_wait_s=100.0, max_tokens=20)
    take(batcher, [job(words(10), words(10))], now=0.0)
    assert batcher.next_work(0.0) is not None


def test_after_a_window_the_next_text_opens_another() -> None:
    batcher = make_batcher(max_wait_s=1.0)
    take(batcher, [job("1")], now=0.0)
    work = batcher.next_work(1.0)
    assert work is not None
    batcher.absorb(run(work, device_s=2.0), 3.0)
    take(batcher, [job("1")], now=5.0)
    assert batcher.next_work(5.5) is None
    assert batcher.wakes_at() == 6.0


def test_there_is_no_window_once_the_device_is_known_to_be_quick_enough() -> None:
    batcher = make_batcher(max_wait_s=1.0)
    take(batcher, [job("1")], now=0.0)
    drain(batcher, 1.0)
    take(batcher, [job("1")], now=5.0)
    assert batcher.next_work(5.0) is not None


def test_batches_keep_to_the_padded_budget_and_a_job_may_span_several() -> None:
    batcher = make_batcher(max_tokens=20)
    many = job(*[words(length) for length in (9, 1, 5, 10, 2, 7, 3, 8, 4, 6)])
    take(batcher, [many], 0.0)
    works, outcomes = drain(batcher)
    assert len(works) > 1
    for work in works:
        lengths = [len(row) for row in work.rows]
        assert max(lengths) * len(lengths) <= 20
    assert [row[0] for row in vectors(outcomes[0])] == [9, 1, 5, 10, 2, 7, 3, 8, 4, 6]


def test_an_oversize_text_keeps_no_other_back() -> None:
    batcher = make_batcher(max_tokens=20)
    take(batcher, [job(words(40)), job(words(2)), job(words(2))], 0.0)
    works, outcomes = drain(batcher)
    assert [[len(row) for row in work.rows] for work in works] == [[40], [2, 2]]
    assert len(outcomes) == 3


@pytest.mark.parametrize("queue", ["embedding", BULK])
def test_one_batch_waits_behind_the_one_that_runs_and_no_more(queue: str) -> None:
    batcher = make_batcher(max_tokens=20)
    take(batcher, [job(*[words(10)] * 12, queue=queue)], 0.0)
    assert batcher.next_work(1.0) is not None
    assert batcher.next_work(1.0) is not None
    assert batcher.next_work(1.0) is None


def test_a_bad_request_fails_alone_and_is_told_which_field() -> None:
    batcher = make_batcher()
    bad = [
        job("1", model="other"),
        job("1", dimensions=9),
        job(words(60), truncate=False),
        job("1", encoding_format="hex"),
        job(),
    ]
    good = job("1")
    outcomes = take(batcher, [*bad, good], 0.0)
    sentences = {outcome.job.id: str(error(outcome)) for outcome in outcomes}
    expected = [
        "model: this worker serves m",
        "dimensions: m makes vectors of 4",
        "input: item 0 is longer than the 50",
    ]
    for each, start in zip(bad, [*expected, "encoding_format: ", "input: the list is empty"], strict=True):
        assert sentences[each.id].startswith(start)
    assert all(isinstance(error(outcome), InvalidRequestError) for outcome in outcomes)
    assert [outcome.job for outcome in drain(batcher)[1]] == [good]


def test_fewer_dimensions_are_the_first_ones_normalised_again() -> None:
    batcher = make_batcher()
    take(batcher, [job(words(3, 4), dimensions=2)], 0.0)
    _, outcomes = drain(batcher)
    assert vectors(outcomes[0])[0] == pytest.approx([0.6, 0.8])


def test_vectors_come_as_numbers_where_that_is_asked_for() -> None:
    batcher = make_batcher()
    take(batcher, [job(words(3, 4), encoding_format="float")], 0.0)
    _, outcomes = drain(batcher)
    assert isinstance(outcomes[0], Finished)
    assert json.loads(outcomes[0].result)["embeddings"]["data"] == [[3, 4, 0, 0]]
    assert vectors(outcomes[0]) == [[3, 4, 0, 0]]


def test_raw_vectors_lie_beside_the_result_and_inside_it_where_there_is_no_beside() -> None:
    batcher = make_batcher()
    take(batcher, [job(words(3, 4), encoding_format="raw")], 0.0)
    (outcome,) = drain(batcher)[1]
    assert isinstance(outcome, Finished)
    assert outcome.vectors == np.array([3, 4, 0, 0], "<f4").tobytes()
    assert json.loads(outcome.result)["embeddings"] | {"data": ""} == json.loads(outcome.result)["embeddings"]
    whole = EmbeddingResult.model_validate(outcome.whole(), strict=False)
    assert np.array_equal(whole.vectors, [[3, 4, 0, 0]])


def test_a_batch_that_the_device_rejects_is_halved_until_the_culprit_stands_alone() -> None:
    batcher = make_batcher(max_tokens=1000)
    jobs = [job(str(number)) for number in range(8)]
    take(batcher, jobs, 0.0)
    outcomes: list[Outcome] = []
    while (work := batcher.next_work(1000.0)) is not None:
        culprit = any(row[0] == 5 for row in work.rows)
        outcomes += batcher.absorb(Rejected(work.id, "no fives", permanent=False) if culprit else run(work), 1000.0)
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert [outcome.job for outcome in failed] == [jobs[5]]
    assert isinstance(failed[0].error, InferenceError)
    assert len(outcomes) == 8


def test_a_device_that_loses_a_row_is_found_out() -> None:
    batcher = make_batcher()
    take(batcher, [job("1", "2")], 0.0)
    work = batcher.next_work(10.0)
    assert work is not None
    answer = run(work)
    with pytest.raises(RuntimeError, match="1 vectors for 2 texts"):
        batcher.absorb(replace(answer, vectors=answer.vectors[:1]), 10.0)


def test_room_shrinks_as_texts_come_in_and_interactive_jobs_always_have_some() -> None:
    batcher = make_batcher(max_tokens=20)
    assert batcher.room().bulk > 0
    take(batcher, [job(*[words(10)] * 200, queue=BULK)])
    after = batcher.room()
    assert after.bulk == 0
    assert after.interactive > 0


def test_each_lane_takes_in_only_so_many_texts_however_many_a_job_has() -> None:
    batcher = make_batcher(max_tokens=1000, max_rows=8)
    jobs = 0
    while room := batcher.room().interactive:
        take(batcher, [job(*["1"] * 500) for _ in range(min(room, 2))])
        jobs += 2
    assert jobs <= 6
    assert batcher.room().bulk == 0, "the device has enough to do"


def test_a_lane_takes_in_no_more_while_it_holds_much_that_it_has_not_read() -> None:
    batcher = make_batcher()
    large = job(queue=BULK)
    large.fields[b"data"] = bytes(33_000_000)
    batcher.add([large])
    assert batcher.room().bulk == 0
    assert batcher.room().interactive > 0
    batcher.read(0.0)
    assert batcher.room().bulk > 0


def test_reading_is_cut_into_slices_and_bad_requests_are_no_exception() -> None:
    ticks = itertools.count()
    batcher = make_batcher(clock=lambda: 0.0015 * next(ticks))
    bad = [job(model="other") for _ in range(100)]
    refused = take(batcher, bad)
    assert 1 <= len(refused) <= 3
    assert batcher.wakes_at() == 0.0
    while batcher.wakes_at() is not None:
        refused += batcher.read(0.0)
    assert [outcome.job for outcome in refused] == bad


def test_a_last_batch_that_is_not_full_is_packed_again_with_what_came_since() -> None:
    batcher = make_batcher(max_tokens=20, max_wait_s=0.0)
    take(batcher, [job(*[words(5)] * 4, *[words(10)])])
    first = given(batcher)
    take(batcher, [job(words(10))])
    assert (lengths(first), lengths(given(batcher))) == ([5] * 4, [10, 10])


def test_the_longest_text_runs_though_shorter_ones_keep_coming() -> None:
    batcher = make_batcher(max_tokens=20, max_wait_s=0.0)
    long = job(words(20))
    take(batcher, [*(job(words(3)) for _ in range(11)), long])
    outcomes: list[Outcome] = []
    for _ in range(10):
        take(batcher, [job(words(3)) for _ in range(6)])
        outcomes += batcher.absorb(run(given(batcher)), 1000.0)
    assert long in [outcome.job for outcome in outcomes]


def test_a_window_that_has_closed_does_not_wake_the_loop_while_the_device_is_busy() -> None:
    batcher = make_batcher(max_tokens=20, max_wait_s=1.0)
    take(batcher, [job(*[words(10)] * 4)])
    given(batcher, 0.0), given(batcher, 0.0)
    take(batcher, [job("1", queue=BULK)])
    assert batcher.wakes_at() == 1.0
    assert batcher.next_work(2.0) is None
    assert batcher.wakes_at() is None


def test_bulk_is_not_claimed_while_interactive_jobs_have_no_room() -> None:
    batcher = make_batcher()
    large = job()
    large.fields[b"data"] = bytes(33_000_000)
    batcher.add([large])
    room = batcher.room()
    assert (room.interactive, room.bulk) == (0, 0)
    batcher.forget([large.id])
    assert batcher.room().bulk > 0


def test_jobs_that_ended_take_no_room() -> None:
    batcher = make_batcher(max_tokens=1000)
    for _ in range(20):
        take(batcher, [job("1") for _ in range(128)])
        drain(batcher)
    assert batcher.room().interactive > 0


def test_what_runs_again_waits_for_no_window() -> None:
    batcher = make_batcher(max_wait_s=100.0, max_tokens=20)
    take(batcher, [job(words(10), words(10))])
    work = given(batcher, 0.0)
    batcher.absorb(Rejected(work.id, "device", permanent=False), 1.0)
    for _ in range(2):
        half = given(batcher, 1.0)
        assert lengths(half) == [10]
        batcher.absorb(run(half), 1.0)


def test_a_job_that_is_forgotten_while_it_is_read_is_not_run() -> None:
    ticks = itertools.count()
    batcher = make_batcher(clock=lambda: 0.006 * next(ticks))
    long = job(*["1"] * 2000)
    take(batcher, [long])
    assert batcher.wakes_at() == 0.0
    batcher.forget([long.id])
    assert batcher.wakes_at() is None
    assert batcher.read(0.0) == []
    assert batcher.next_work(1000.0) is None


def test_a_job_that_met_two_deaths_of_workers_runs_with_nothing_beside_it() -> None:
    batcher = make_batcher()
    before = job("1", queue=BULK)
    take(batcher, [before, replace(job("2", "3", queue=BULK), deaths=2), job("4"), job("5", queue=BULK)])
    batches = []
    while (work := batcher.next_work(1000.0)) is not None:
        assert batcher.next_work(1000.0) is None, "something is beside it"
        batches.append([int(row[0]) for row in work.rows])
        batcher.absorb(run(work), 1000.0)
    assert batches == [[4], [2, 3], [1, 5]]


def test_a_suspect_that_is_alone_at_one_more_death_is_cut_in_halves_and_poison_is_found_at_the_third() -> None:
    batcher = make_batcher()
    suspect = replace(job("2", "3"), deaths=2)
    take(batcher, [suspect])
    outcomes: list[Outcome] = []
    for _ in range(20):
        if (work := batcher.next_work(1000.0)) is None:
            break
        rows = [int(row[0]) for row in work.rows]
        outcomes += batcher.engine_died(1000.0, suspect=True) if 3 in rows else batcher.absorb(run(work), 1000.0)
    (failed,) = outcomes
    assert isinstance(failed, Failed)
    assert "item 1" in str(failed.error)


def test_what_is_not_yet_read_is_at_risk_while_it_is_read() -> None:
    batcher = make_batcher()
    waiting = job("1")
    batcher.add([waiting])
    assert batcher.unread() == {waiting.id}
    batcher.read(0.0)
    assert batcher.unread() == set()


def test_a_job_of_which_a_part_is_read_is_at_risk_yet() -> None:
    ticks = itertools.count()
    batcher = make_batcher(clock=lambda: 0.0015 * next(ticks))
    long = job(*["1"] * 500)
    take(batcher, [long])
    assert batcher.wakes_at() == 0.0
    assert batcher.unread() == {long.id}


def test_a_read_looks_at_no_job_that_was_not_said_to_be_at_risk() -> None:
    batcher = make_batcher()  # by whose clock no time passes
    jobs = [job("1", queue=BULK if at % 3 else "embedding") for at in range(300)]
    batcher.add([*jobs, replace(job(), fields={b"data": b"no JSON"})])
    read: set[str] = set()
    slices = 0
    while at_risk := batcher.unread():
        read |= {outcome.job.id for outcome in batcher.read(0.0)}
        assert batcher._jobs.keys() - read <= at_risk
        read |= batcher._jobs.keys()
        slices += 1
    assert len(read) == 301
    assert slices > 2


def test_a_result_says_what_its_texts_used_each_by_its_tokens_and_nothing_where_a_batch_was_not_measured() -> None:
    batcher = make_batcher(max_wait_s=0.0, max_tokens=1000)
    take(batcher, [job(words(1), words(3)), job(words(4))])
    work = given(batcher)
    told = {
        each["embeddings"]["shape"][0]: each["provenance"]
        for each in results(batcher.absorb(replace(run(work), energy_j=0.4), 0.0))
    }
    assert {texts: each["joules_per_1000_texts"] for texts, each in told.items()} == {1: 200.0, 2: 100.0}
    assert {each["joules_per_1000_tokens"] for each in told.values()} == {50.0}
    take(batcher, [job(words(1))])
    (unmeasured,) = results(batcher.absorb(run(given(batcher)), 0.0))
    assert "joules_per_1000_texts" not in unmeasured["provenance"]


def results(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    for each in outcomes:
        assert isinstance(each, Finished)
        EmbeddingResult.model_validate(json.loads(each.result), strict=False)
    return [json.loads(each.result) for each in outcomes if isinstance(each, Finished)]
