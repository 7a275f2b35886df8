"""Generation jobs joining and leaving, without Redis, processes or models."""

from __future__ import annotations

import itertools
import json
import math
import zlib
from dataclasses import replace
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
    from collections.abc import Callable, Sequence

    from impetus_backends.protocol import Event

INFO = EngineInfo(
    kind="generation", backend="fake", device="fake", model="m", model_aliases=("m",), fingerprint="f", precision="4bit"
)
IDS = itertools.count()


BULK = "generation-bulk"


def make_batcher(max_concurrent: int = 4, clock: Callable[[], float] = lambda: 0.0) -> GenerationBatcher:
    """By its own clock, which stands still unless another is given, it reads everything at once."""
    return GenerationBatcher(INFO, worker="w", max_concurrent=max_concurrent, clock=clock)


def job(prompt: str = "p", queue: str = "generation", timeout_s: int = 180, **fields: object) -> ClaimedJob:
    data = json.dumps([GENERATE_FUNCTION, None, [{"prompt": prompt, **fields}], {}]).encode()
    hashed = {b"data": zlib.compress(data), b"timeout": str(timeout_s).encode()}
    return ClaimedJob(f"job{next(IDS)}", "e", queue, hashed, 0.0)


def take(batcher: GenerationBatcher, jobs: list[ClaimedJob], now: float = 0.0) -> list[Outcome]:
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
    batcher.absorb(done(works[0]), 1.0)
    assert batcher.room().bulk == 2


def test_a_request_reaches_the_engine_whole_and_its_result_reads_by_the_contract() -> None:
    batcher = make_batcher()
    asked = job("x", max_tokens=9, temperature=0.5, top_p=0.9, stop=["a"], seed=7, queue=BULK)
    take(batcher, [asked], 0.0)
    (work,) = admitted(batcher)
    assert (work.max_tokens, work.temperature, work.top_p, work.stop, work.seed) == (9, 0.5, 0.9, ("a",), 7)
    (outcome,) = batcher.absorb(done(work), 1.0)
    assert isinstance(outcome, Finished)
    result = GenerationResult.model_validate(json.loads(outcome.result), strict=False)
    assert (result.text, result.finish_reason, result.usage.completion_tokens) == ("after x", "stop", 4)


def test_what_the_engine_rejects_fails_alone() -> None:
    batcher = make_batcher()
    take(batcher, [job("a"), job("b"), job("c")], 0.0)
    first, second, third = admitted(batcher)
    outcomes = [
        *batcher.absorb(Rejected(first.id, "too long"), 1.0),
        *batcher.absorb(Rejected(second.id, "device", permanent=False), 1.0),
        *batcher.absorb(done(third), 1.0),
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
                outcomes += batcher.absorb(done(work), 1.0)
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
    assert batcher.has_work
    assert batcher.forget([running.id]) == [work.id]
    assert batcher.forget([waiting.id]) == []
    assert batcher.absorb(done(work), 1.0) == []
    assert admitted(batcher) == []


def test_an_engine_ended_on_purpose_gets_its_work_again() -> None:
    batcher = make_batcher()
    take(batcher, [job("a"), job("b")], 0.0)
    admitted(batcher)
    assert batcher.engine_died(1.0, suspect=False) == []
    assert [work.prompt for work in admitted(batcher)] == ["a", "b"]


def events_of(batcher: GenerationBatcher, *events: Event) -> list[News]:
    return [news for event in events for news in batcher.absorb(event, 1.0)]


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
    news = batcher.absorb(cut(work, "half a"), 1.0)
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
    assert isinstance(batcher.absorb(done(work), 1.0)[-1], Finished)


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
    assert said(batcher.absorb(Rejected(one.id, "device", permanent=False), 1.0)) == []
    assert said(batcher.absorb(Rejected(two.id, "device", permanent=False), 1.0)) == [("end", 0, "")]


def test_a_job_without_memory_goes_back_and_no_more_are_claimed_until_one_ends() -> None:
    batcher = make_batcher(8)
    jobs = [job(str(number)) for number in range(8)]
    take(batcher, jobs, 0.0)
    works = admitted(batcher)
    events_of(batcher, *(protocol.Started(work.id) for work in works[:5]))
    returned = events_of(batcher, *(Deferred(work.id) for work in works[5:]))
    assert returned == [Returned(each) for each in jobs[5:]]
    assert batcher.room() == Room(0, 0)
    batcher.absorb(done(works[0]), 1.0)
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
    assert batcher.patience_s(1.0) == 600.0
    take(batcher, [job(str(number)) for number in range(3)], 0.0)
    events_of(batcher, *(Parked(work.id) for work in admitted(batcher)))
    assert batcher.room().interactive == 0


def test_some_places_are_kept_for_jobs_whose_callers_wait() -> None:
    batcher = make_batcher(16)
    assert batcher.room() == Room(interactive=16, bulk=14)
    take(batcher, [job(str(number), queue=BULK) for number in range(14)], 0.0)
    assert batcher.room() == Room(interactive=2, bulk=0)


def begin(batcher: GenerationBatcher, works: Sequence[GenerationWork], now: float = 1.0) -> None:
    for work in works:
        batcher.absorb(protocol.Started(work.id), now)


def prompts(works: Sequence[GenerationWork]) -> list[str | None]:
    return [work.prompt for work in works]


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
    assert batcher.room() == Room(8, 7)


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


def test_requests_are_read_a_few_at_a_time() -> None:
    ticks = itertools.count()
    batcher = make_batcher(100, clock=lambda: 0.004 * next(ticks))
    take(batcher, [job() for _ in range(10)])
    assert 1 <= len(admitted(batcher)) <= 4
    assert batcher.wakes_at() == 0.0
    for _ in range(10):
        batcher.read(0.0)
    assert batcher.wakes_at() is None


def test_jobs_are_forgotten_wherever_they_are() -> None:
    batcher = make_batcher(8)
    running, waiting, unread, kept = job("a"), job("b"), job("c"), job("d")
    take(batcher, [running])
    (work,) = admitted(batcher)
    take(batcher, [waiting, kept])
    batcher.add([unread])
    assert batcher.forget({running.id, waiting.id, unread.id}) == [work.id]
    assert batcher.read(0.0) == []
    assert prompts(admitted(batcher)) == ["d"]


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
