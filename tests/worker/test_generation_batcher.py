"""Generation jobs joining and leaving, without Redis, processes or models."""

from __future__ import annotations

import itertools
import json
import zlib

from impetus_backends.protocol import EngineInfo, Generated, GenerationWork, Rejected
from impetus_producer.contract import GENERATE_FUNCTION, GenerationResult
from impetus_worker.batching import Failed, Finished, News, Outcome
from impetus_worker.claims import ClaimedJob
from impetus_worker.errors import InferenceError, InvalidRequestError, PoisonedJobError
from impetus_worker.generation import GenerationBatcher

INFO = EngineInfo(
    kind="generation", backend="fake", device="fake", model="m", model_aliases=("m",), fingerprint="f", precision="4bit"
)
IDS = itertools.count()


def make_batcher(max_concurrent: int = 4) -> GenerationBatcher:
    return GenerationBatcher(INFO, worker="w", max_concurrent=max_concurrent)


def job(prompt: str = "p", queue: str = "generation", **fields: object) -> ClaimedJob:
    data = json.dumps([GENERATE_FUNCTION, None, [{"prompt": prompt, **fields}], {}]).encode()
    return ClaimedJob(f"job{next(IDS)}", "e", queue, {b"data": zlib.compress(data)}, 0.0)


def take(batcher: GenerationBatcher, jobs: list[ClaimedJob], now: float) -> list[Outcome]:
    """Gives it jobs, and has it read them."""
    batcher.add(jobs)
    return batcher.prepare(now)


def done(work: GenerationWork) -> Generated:
    return Generated(work.id, f"after {work.prompt}", "stop", 3, 4, 0.1, 0.2, "m", "f")


def admitted(batcher: GenerationBatcher) -> list[GenerationWork]:
    return list(iter(lambda: batcher.next_work(1.0), None))


def test_jobs_are_claimed_only_for_free_places() -> None:
    batcher = make_batcher(4)
    assert batcher.room().interactive == 4
    take(batcher, [job(), job(), job()], 0.0)
    works = admitted(batcher)
    assert len(works) == 3
    assert batcher.room().bulk == 1
    batcher.absorb(done(works[0]))
    assert batcher.room().bulk == 2


def test_a_request_reaches_the_engine_whole_and_its_result_reads_by_the_contract() -> None:
    batcher = make_batcher()
    asked = job("x", max_tokens=9, temperature=0.5, top_p=0.9, stop=["a"], seed=7, queue="generation-bulk")
    take(batcher, [asked], 0.0)
    (work,) = admitted(batcher)
    assert (work.max_tokens, work.temperature, work.top_p, work.stop, work.seed) == (9, 0.5, 0.9, ("a",), 7)
    (outcome,) = batcher.absorb(done(work))
    assert isinstance(outcome, Finished)
    result = GenerationResult.model_validate(json.loads(outcome.result), strict=False)
    assert (result.text, result.finish_reason, result.usage.completion_tokens) == ("after x", "stop", 4)


def test_what_the_engine_rejects_fails_alone() -> None:
    batcher = make_batcher()
    take(batcher, [job("a"), job("b"), job("c")], 0.0)
    first, second, third = admitted(batcher)
    outcomes = [
        *batcher.absorb(Rejected(first.id, "too long")),
        *batcher.absorb(Rejected(second.id, "device", permanent=False)),
        *batcher.absorb(done(third)),
    ]
    assert [type(outcome.error) for outcome in outcomes if isinstance(outcome, Failed)] == [
        InvalidRequestError,
        InferenceError,
    ]


def test_a_model_it_does_not_serve_is_refused_by_name() -> None:
    (outcome,) = take(make_batcher(), [job(model="other")], 0.0)
    assert isinstance(outcome, Failed)
    assert "serves m and not 'other'" in str(outcome.error)


def test_after_deaths_the_poison_is_found_and_the_others_finish() -> None:
    batcher = make_batcher(8)
    jobs = [job(str(number)) for number in range(8)]
    take(batcher, jobs, 0.0)
    outcomes: list[News] = []
    for _ in range(100):
        works = admitted(batcher)
        if any(work.prompt == "3" for work in works):
            outcomes += batcher.engine_died(suspect=True)
        else:
            for work in works:
                outcomes += batcher.absorb(done(work))
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert [(outcome.job, type(outcome.error)) for outcome in failed] == [(jobs[3], PoisonedJobError)]
    assert len(outcomes) == 8
    assert batcher.room().interactive == 8


def test_a_dropped_job_is_cancelled_in_the_engine() -> None:
    batcher = make_batcher()
    running, waiting = job("a"), job("b")
    take(batcher, [running], 0.0)
    (work,) = admitted(batcher)
    take(batcher, [waiting], 0.0)
    assert batcher.in_engine(running.id)
    assert batcher.drop(running.id) == [work.id]
    assert batcher.drop(waiting.id) == []
    assert batcher.absorb(done(work)) == []
    assert admitted(batcher) == []


def test_an_engine_ended_on_purpose_gets_its_work_again() -> None:
    batcher = make_batcher()
    take(batcher, [job("a"), job("b")], 0.0)
    admitted(batcher)
    assert batcher.engine_died(suspect=False) == []
    assert [work.prompt for work in admitted(batcher)] == ["a", "b"]
