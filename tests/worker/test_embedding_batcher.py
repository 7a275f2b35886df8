"""Micro-batching across jobs, without Redis, processes or models."""

from __future__ import annotations

import itertools
import json
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from impetus_backends.protocol import Embedded, EmbeddingWork, EngineInfo, Rejected
from impetus_producer.contract import EMBED_FUNCTION, EmbeddingResult
from impetus_worker.batches.embedding import EmbeddingBatcher
from impetus_worker.errors import InferenceError, InvalidRequestError, PoisonedJobError
from impetus_worker.leases.claims import ClaimedJob
from impetus_worker.leases.outcomes import Failed, Finished, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

INFO = EngineInfo(
    kind="embedding", backend="fake", device="fake", model="m", model_aliases=("m", "org/m"), fingerprint="f",
    precision="fp32", dimensions=4, max_tokens=50,
)  # fmt: skip
IDS = itertools.count()


@dataclass
class Encoded:
    ids: np.ndarray
    truncated: bool


class OneTokenAWord:
    """Words are numbers, and tokens are these numbers."""

    def encode(self, texts: Sequence[str], *, input_type: str | None = None) -> list[Encoded]:
        rows = [np.array([int(word) for word in text.split()], dtype=np.int32) for text in texts]
        return [Encoded(row[: INFO.max_tokens], len(row) > INFO.max_tokens) for row in rows]


def make_batcher(max_wait_s: float = 1.0, max_tokens: int = 20, max_rows: int = 8) -> EmbeddingBatcher:
    return EmbeddingBatcher(
        INFO, OneTokenAWord(), worker="w", max_batch_texts=max_rows, max_batch_tokens=max_tokens, max_wait_s=max_wait_s
    )


def job(*texts: str, queue: str = "embedding", **fields: object) -> ClaimedJob:
    data = json.dumps([EMBED_FUNCTION, None, [{"input": list(texts), **fields}], {}]).encode()
    return ClaimedJob(f"job{next(IDS)}", "e", queue, {b"data": zlib.compress(data)}, 0.0)


def words(count: int, word: int = 7) -> str:
    return " ".join([str(word)] * count)


def take(batcher: EmbeddingBatcher, jobs: list[ClaimedJob], now: float) -> list[Outcome]:
    """Gives it jobs, and has it read them."""
    batcher.add(jobs)
    return batcher.read(now)


def run(work: EmbeddingWork, device_s: float = 0.001) -> Embedded:
    """A device whose vector is the row's length, its first token, and zeros."""
    return Embedded(work.id, np.array([[len(row), row[0], 0, 0] for row in work.rows], np.float32), device_s)


def drain(batcher: EmbeddingBatcher, now: float = 1000.0) -> tuple[list[EmbeddingWork], list[Outcome]]:
    works, outcomes = [], []
    while (work := batcher.next_work(now)) is not None:
        works.append(work)
        outcomes += batcher.absorb(run(work))
    return works, outcomes


def vectors(outcome: Outcome) -> list[list[float]]:
    assert isinstance(outcome, Finished)
    result = EmbeddingResult.model_validate(json.loads(outcome.result), strict=False)
    return [list(map(float, row)) for row in result.vectors]


def error(outcome: Outcome) -> Exception:
    assert isinstance(outcome, Failed)
    return outcome.error


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
    batcher.absorb(run(work, device_s=2.0))
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
    assert [[len(row) for row in work.rows] for work in works] == [[2, 2], [40]]
    assert len(outcomes) == 3


def test_one_batch_waits_behind_the_one_that_runs_and_no_more() -> None:
    batcher = make_batcher(max_tokens=20)
    take(batcher, [job(*[words(10)] * 12, queue="embedding-bulk")], 0.0)
    assert batcher.next_work(1.0) is not None
    assert batcher.next_work(1.0) is not None
    assert batcher.next_work(1.0) is None


def test_an_interactive_text_passes_a_bulk_backlog() -> None:
    batcher = make_batcher(max_tokens=20, max_wait_s=0.0)
    take(batcher, [job(*[words(10)] * 100, queue="embedding-bulk")], 0.0)
    first, second = batcher.next_work(1.0), batcher.next_work(1.0)
    take(batcher, [job("3", queue="embedding")], 1.0)
    urgent = batcher.next_work(1.0)
    assert first is not None
    assert second is not None
    assert urgent is not None
    assert (first.urgent, second.urgent, urgent.urgent) == (False, False, True)
    assert [row.tolist() for row in urgent.rows] == [[3]]


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
        outcomes += batcher.absorb(Rejected(work.id, "no fives", permanent=False) if culprit else run(work))
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
        batcher.absorb(replace(answer, vectors=answer.vectors[:1]))


def test_a_dropped_job_is_forgotten_and_its_neighbours_are_not() -> None:
    batcher = make_batcher(max_tokens=20)
    doomed, neighbour = job(*[words(5)] * 8), job(words(5))
    take(batcher, [doomed, neighbour], 0.0)
    work = batcher.next_work(10.0)
    assert work is not None
    assert batcher.in_engine(doomed.id)
    assert batcher.started_at(doomed.id) == 10.0
    assert batcher.forget([doomed.id]) == [work.id]
    assert batcher.absorb(run(work)) == []
    assert [outcome.job for outcome in drain(batcher)[1]] == [neighbour]


def test_after_a_death_suspects_run_alone_and_the_poison_is_found() -> None:
    batcher = make_batcher(max_tokens=1000)
    jobs = [job(str(number)) for number in range(8)]
    take(batcher, jobs, 0.0)
    outcomes: list[Outcome] = []
    deaths = 0
    while (work := batcher.next_work(1000.0)) is not None:
        assert deaths == 0 or batcher.next_work(1000.0) is None, "a suspect has company"
        if any(row[0] == 5 for row in work.rows):
            deaths += 1
            outcomes += batcher.engine_died(1.0, suspect=True)
        else:
            outcomes += batcher.absorb(run(work))
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert [outcome.job for outcome in failed] == [jobs[5]]
    assert isinstance(failed[0].error, PoisonedJobError)
    assert len(outcomes) == 8


def test_when_the_engine_was_ended_on_purpose_its_work_runs_again_as_it_was() -> None:
    batcher = make_batcher(max_tokens=20)
    take(batcher, [job(*[words(10)] * 6, queue="embedding-bulk")], 0.0)
    first, second = batcher.next_work(1.0), batcher.next_work(1.0)
    assert first is not None
    assert second is not None
    assert batcher.engine_died(1.0, suspect=False) == []
    works, outcomes = drain(batcher)
    assert len(works) == 3
    assert len(outcomes) == 1


def test_room_shrinks_as_texts_come_in_and_interactive_jobs_always_have_some() -> None:
    batcher = make_batcher(max_tokens=20)
    before = batcher.room()
    assert before.bulk > 0
    take(batcher, [job(*[words(10)] * 200, queue="embedding-bulk")], 0.0)
    after = batcher.room()
    assert after.bulk == 0
    assert after.interactive > 0
