"""The batching of generation jobs, by an engine that only remembers."""

from __future__ import annotations

import itertools
import json
import pickle
from dataclasses import replace

import pytest

from impetus_backends import protocol
from impetus_backends.protocol import Answer, Deferred, EngineInfo, Generated, Parked, Progress, Rejected
from impetus_producer.contract import GenerationResult, StreamEvent
from impetus_producer.contract.provenance import Provenance
from impetus_worker.batches.batcher import Room
from impetus_worker.batches.results import GenerationResults
from impetus_worker.errors import InferenceError, InvalidRequestError
from impetus_worker.leases.outcomes import Failed, Finished, Returned, Said, Stopped

from .generating import BULK, admitted, begin, cut, done, events_of, job, make_batcher, prompts, said, take


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


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_of_allowed_tools_the_engine_is_told_of_no_other_and_of_no_marks(mode: str) -> None:
    tools = [{"type": "function", "function": {"name": name}, "cache_control": {"type": "ephemeral"}} for name in "abc"]
    allowed = [{"type": "function", "function": {"name": name}} for name in "ca"]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed}}
    batcher = make_batcher()
    take(batcher, [job(None, messages=[{"role": "user", "content": "x"}], tools=tools, tool_choice=choice)])
    (work,) = admitted(batcher)
    assert work.tool_choice == mode
    assert work.tools == tuple({"type": "function", "function": {"name": name}} for name in "ac")


@pytest.mark.parametrize("depth", [300, 900, 100_000])
@pytest.mark.parametrize("form", ["[", '{"a":'])
def test_arguments_of_a_call_that_are_nested_without_end_are_text(form: str, depth: int) -> None:
    """The loop reads them, and pickle takes no more than some hundred levels to the engine."""
    written = form * depth + "1" + ("]" if form == "[" else "}") * depth
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": written}}
    talk = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    batcher = make_batcher()
    take(batcher, [job(None, messages=talk)])
    (work,) = admitted(batcher)
    assert work.messages
    assert work.messages[1]["tool_calls"][0]["function"]["arguments"] == written
    pickle.dumps(work)


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
    assert batcher.room() == Room(interactive=16, bulk=14, ahead=8)
    take(batcher, [job(str(number), queue=BULK) for number in range(14)], 0.0)
    assert batcher.room() == Room(interactive=2, bulk=0, ahead=8)


def test_bulk_jobs_that_are_held_to_choose_from_take_no_place_and_hold_up_nobody_who_waits() -> None:
    batcher = make_batcher(8)
    take(batcher, [job(str(number), queue=BULK) for number in range(11)])
    works = admitted(batcher)
    begin(batcher, works)
    assert prompts(works) == [str(number) for number in range(7)]
    assert batcher.room() == Room(interactive=1, bulk=0, ahead=0)
    take(batcher, [job("urgent")])
    assert prompts(admitted(batcher)) == ["urgent"]
    assert batcher.room().interactive == 0
    batcher.absorb(done(works[0]), 1.0)
    assert admitted(batcher) == [], "the place is an interactive job's"
    assert batcher.room() == Room(interactive=1, bulk=0, ahead=0)
    batcher.absorb(done(works[1]), 1.0)
    assert prompts(admitted(batcher)) == ["7"]
    assert batcher.room().ahead == 1


def test_bulk_jobs_that_begin_alike_go_one_after_another_and_pass_nobody_for_ever() -> None:
    batcher = make_batcher(1)
    stems = {name: f"{name} " * 400 for name in "ab"}
    take(batcher, [job(stems[name] + str(at), queue=BULK) for at, name in enumerate("abababab")])
    order = ""
    for _ in range(8):
        (work,) = admitted(batcher)
        order += str(work.prompt)[0]
        batcher.absorb(done(work), 1.0)
    assert order == "aaaabbbb"
    take(batcher, [job(stems["b"], queue=BULK), job(stems["a"], queue=BULK)])
    passed = 0
    while True:  # as many as can be that begin as the last one did
        take(batcher, [job(stems["b"], queue=BULK)])
        (work,) = admitted(batcher)
        batcher.absorb(done(work), 1.0)
        if str(work.prompt).startswith("a"):
            break
        passed += 1
    assert 30 <= passed <= 34


def test_held_jobs_stay_where_they_are_while_there_is_no_memory() -> None:
    batcher = make_batcher(8)
    take(batcher, [job(str(number), queue=BULK) for number in range(9)])
    works = admitted(batcher)
    begin(batcher, works[:5])
    events_of(batcher, *(Deferred(work.id) for work in works[5:]))
    assert admitted(batcher) == []
    assert batcher.room() == Room(0, 0)
    batcher.absorb(done(works[0]), 1.0)
    assert prompts(admitted(batcher)) == ["7", "8"]


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


def test_a_result_says_what_its_answers_and_the_tokens_that_were_made_used_where_it_was_measured() -> None:
    answers = (Answer("a", "stop"), Answer("b", "stop"))
    made = Generated(1, answers, 100, 8, 0.1, 0.2, "m", "f", energy_j=0.4)
    results = GenerationResults(EngineInfo("generation", "mlx", "gpu", "m", ("m",), "f", "fp16"), "w1")
    told = json.loads(results.of(made))["provenance"]
    assert (told["joules_per_1000_texts"], told["joules_per_1000_tokens"]) == (200.0, 50.0)
    assert Provenance.model_validate(told).joules_per_1000_tokens == 50.0
    unmeasured = json.loads(results.of(replace(made, energy_j=None)))["provenance"]
    assert "joules_per_1000_texts" not in unmeasured
