"""Generation jobs joining and leaving, without Redis, processes or models."""

from __future__ import annotations

import itertools
import json
import zlib
from typing import TYPE_CHECKING

import pytest

from impetus_backends import protocol
from impetus_backends.protocol import Deferred, EngineInfo, Generated, GenerationWork, Parked, Progress, Rejected
from impetus_producer.contract import GENERATE_FUNCTION, GenerationResult, StreamEvent
from impetus_worker.batches.batcher import Room
from impetus_worker.batches.generation import GenerationBatcher
from impetus_worker.errors import InferenceError, InvalidRequestError, PoisonedJobError
from impetus_worker.leases.claims import ClaimedJob
from impetus_worker.leases.outcomes import Failed, Finished, News, Outcome, Returned, Said, Stopped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.protocol import Event

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
    return batcher.read(now)


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
            outcomes += batcher.engine_died(1.0, suspect=True)
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
    assert batcher.forget([running.id]) == [work.id]
    assert batcher.forget([waiting.id]) == []
    assert batcher.absorb(done(work)) == []
    assert admitted(batcher) == []


def test_an_engine_ended_on_purpose_gets_its_work_again() -> None:
    batcher = make_batcher()
    take(batcher, [job("a"), job("b")], 0.0)
    admitted(batcher)
    assert batcher.engine_died(1.0, suspect=False) == []
    assert [work.prompt for work in admitted(batcher)] == ["a", "b"]


def events_of(batcher: GenerationBatcher, *events: Event) -> list[News]:
    return [news for event in events for news in batcher.absorb(event)]


def cut(work: GenerationWork, text: str) -> Generated:
    return Generated(work.id, text, "cancelled", 3, 4, 0.1, 0.2, "m", "f")


def said(news: Sequence[News]) -> list[tuple[str, int, str]]:
    return [(each.event.value, each.at, each.text) for each in news if isinstance(each, Said)]


def test_a_streamed_job_tells_its_text_piece_by_piece_and_then_its_end() -> None:
    batcher = make_batcher()
    take(batcher, [job("x", stream=True)], 0.0)
    (work,) = admitted(batcher)
    assert work.stream
    news = events_of(batcher, protocol.Started(work.id), Progress(work.id, "aft"), Progress(work.id, "er "), done(work))
    assert said(news) == [("start", 0, ""), ("text", 0, "aft"), ("text", 3, "er "), ("text", 6, "x"), ("end", 0, "")]
    assert isinstance(news[-1], Finished)
    assert len({each.run for each in news if isinstance(each, Said)}) == 1


def test_a_job_that_did_not_ask_for_a_stream_tells_nothing() -> None:
    batcher = make_batcher()
    take(batcher, [job("x")], 0.0)
    (work,) = admitted(batcher)
    assert said(events_of(batcher, protocol.Started(work.id), done(work))) == []


def test_a_run_that_begins_anew_is_another_run_and_counts_its_text_from_the_start() -> None:
    batcher = make_batcher()
    take(batcher, [job("x", stream=True)], 0.0)
    (work,) = admitted(batcher)
    first = events_of(batcher, protocol.Started(work.id), Progress(work.id, "aft"))
    batcher.engine_died(1.0, suspect=True)
    (again,) = admitted(batcher)
    second = events_of(batcher, protocol.Started(again.id), Progress(again.id, "after"))
    assert said(second) == [("start", 0, ""), ("text", 0, "after")]
    assert {each.run for each in first if isinstance(each, Said)}.isdisjoint(
        each.run for each in second if isinstance(each, Said)
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_stopped_job_keeps_the_text_it_had_made(stream: bool) -> None:
    batcher = make_batcher()
    stopped = job("x", stream=stream)
    take(batcher, [stopped], 0.0)
    (work,) = admitted(batcher)
    events_of(batcher, protocol.Started(work.id))
    assert batcher.interrupt(Stopped(stopped)) == ([work.id], [])
    assert batcher.interrupt(Failed(stopped, ValueError("later"))) == ([], []), "the first one counts"
    news = batcher.absorb(cut(work, "half a"))
    assert news[-1] == Stopped(stopped)
    end = news[-2]
    assert isinstance(end, Said)
    assert (end.event, end.status) == (StreamEvent.END, "stopped")
    kept = GenerationResult.model_validate(json.loads(end.result), strict=False)
    assert (kept.text, kept.finish_reason) == ("half a", "cancelled")


def test_a_job_that_has_not_reached_the_engine_is_stopped_at_once() -> None:
    batcher = make_batcher()
    waiting = job("x", stream=True)
    take(batcher, [waiting], 0.0)
    works, news = batcher.interrupt(Stopped(waiting))
    assert works == []
    assert said(news) == [("end", 0, "")]
    assert news[-1] == Stopped(waiting)
    assert admitted(batcher) == []


def test_a_job_that_ends_by_itself_before_it_can_be_stopped_is_finished() -> None:
    batcher = make_batcher()
    late = job("x")
    take(batcher, [late], 0.0)
    (work,) = admitted(batcher)
    batcher.interrupt(Stopped(late))
    assert isinstance(batcher.absorb(done(work))[-1], Finished)


def test_a_job_whose_engine_dies_while_it_is_being_stopped_is_stopped_and_not_run_again() -> None:
    batcher = make_batcher()
    stopped = job("x")
    take(batcher, [stopped], 0.0)
    admitted(batcher)
    batcher.interrupt(Stopped(stopped))
    assert batcher.engine_died(1.0, suspect=True)[-1] == Stopped(stopped)
    assert admitted(batcher) == []


def test_a_failed_job_that_rq_will_try_again_does_not_end_its_stream() -> None:
    batcher = make_batcher()
    first, second = job("a", stream=True), job("b", stream=True)
    first.fields[b"retries_left"] = b"2"
    take(batcher, [first, second], 0.0)
    one, two = admitted(batcher)
    assert said(batcher.absorb(Rejected(one.id, "device", permanent=False))) == []
    assert said(batcher.absorb(Rejected(two.id, "device", permanent=False))) == [("end", 0, "")]


def test_a_job_without_memory_goes_back_and_no_more_are_claimed_until_one_ends() -> None:
    batcher = make_batcher(8)
    jobs = [job(str(number)) for number in range(8)]
    take(batcher, jobs, 0.0)
    works = admitted(batcher)
    events_of(batcher, *(protocol.Started(work.id) for work in works[:5]))
    returned = events_of(batcher, *(Deferred(work.id) for work in works[5:]))
    assert returned == [Returned(each) for each in jobs[5:]]
    assert batcher.room() == Room(0, 0)
    batcher.absorb(done(works[0]))
    assert batcher.room().interactive == 1, "one at a time, until it is seen that there is memory"
    take(batcher, [jobs[5]], 0.0)
    assert batcher.room().interactive == 0
    (again,) = admitted(batcher)
    events_of(batcher, protocol.Started(again.id))
    assert batcher.room().interactive == 2


def test_a_job_that_waits_for_its_model_takes_no_place_and_such_jobs_are_not_hoarded() -> None:
    batcher = make_batcher(4)
    take(batcher, [job(str(number)) for number in range(4)], 0.0)
    works = admitted(batcher)
    events_of(batcher, *(Parked(work.id) for work in works[:3]))
    assert batcher.room().interactive == 3
    assert batcher.loading
    take(batcher, [job(str(number)) for number in range(3)], 0.0)
    events_of(batcher, *(Parked(work.id) for work in admitted(batcher)))
    assert batcher.room().interactive == 0


def test_some_places_are_kept_for_jobs_whose_callers_wait() -> None:
    batcher = make_batcher(16)
    assert batcher.room() == Room(interactive=16, bulk=14)
    take(batcher, [job(str(number), queue="generation-bulk") for number in range(14)], 0.0)
    assert batcher.room() == Room(interactive=2, bulk=0)


def test_what_the_engine_had_not_begun_is_no_suspect_when_it_dies() -> None:
    batcher = make_batcher(4)
    take(batcher, [job("begun"), job("not begun")], 0.0)
    begun, _ = admitted(batcher)
    batcher.absorb(protocol.Started(begun.id))
    for _ in range(2):
        assert batcher.engine_died(1.0, suspect=True) == []
        (alone,) = admitted(batcher)
        assert alone.prompt == "begun"
        batcher.absorb(protocol.Started(alone.id))
    (poisoned,) = [news for news in batcher.engine_died(1.0, suspect=True) if isinstance(news, Failed)]
    assert isinstance(poisoned.error, PoisonedJobError)
    assert [work.prompt for work in admitted(batcher)] == ["not begun"]


def test_a_job_that_waits_to_run_again_is_innocent_of_a_death_that_comes_before_it_has_begun() -> None:
    batcher = make_batcher(4)
    take(batcher, [job("twice")], 0.0)
    (first,) = admitted(batcher)
    batcher.absorb(protocol.Started(first.id))
    batcher.engine_died(1.0, suspect=False)
    take(batcher, [job("new")], 0.0)
    again, new = admitted(batcher)
    batcher.absorb(protocol.Started(new.id))
    batcher.engine_died(1.0, suspect=True)
    assert [work.prompt for work in admitted(batcher)] == ["new"], "the one that ran goes alone, the other waits for it"
    assert again.prompt == "twice"
