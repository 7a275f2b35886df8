"""Generation by another server: what it is asked, what is made of what it says, and how it may fail."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from impetus_backends.dispatcher import open_engine
from impetus_backends.errors import BackendUnavailableError
from impetus_backends.protocol import (
    Call,
    EmbeddingWork,
    EngineConfig,
    Event,
    Generated,
    GenerationWork,
    Likely,
    Progress,
    Rejected,
    Started,
)
from impetus_backends.upstream.address import read_address
from impetus_backends.upstream.answers import Answers, UpstreamError
from impetus_backends.upstream.engine import UpstreamEngine, open_upstream
from impetus_backends.upstream.exchange import Patience
from impetus_backends.upstream.requests import request_of

from .scripted_server import LIMIT_S, Asked, ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HELLO = ({"role": "user", "content": "Hello"},)
IMPATIENT = Patience(connect_s=5.0, away_s=0.0, first_s=0.3, between_s=0.3)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    try:
        yield server
    finally:
        server.end()


@pytest.fixture
def make_engine(server: ScriptedServer) -> Iterator[Callable[..., UpstreamEngine]]:
    engines: list[UpstreamEngine] = []

    def make(patience: Patience | None = None, **changes: Any) -> UpstreamEngine:
        config = EngineConfig("generation", backend="openai", upstream=server.url, **changes)
        engines.append(open_upstream(config, patience=patience))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def work(work_id: int = 1, *, messages: Any = HELLO, prompt: str | None = None, **fields: Any) -> GenerationWork:
    return GenerationWork(work_id, prompt, None if prompt is not None else messages, **fields)


def events_until(engine: UpstreamEngine, enough: Callable[[list[Event]], object]) -> list[Event]:
    events: list[Event] = []
    deadline = time.monotonic() + LIMIT_S
    while not enough(events):
        assert time.monotonic() < deadline, events
        events += engine.step()
    return events


def run(engine: UpstreamEngine, *works: GenerationWork) -> list[Event]:
    for each in works:
        engine.admit(each)
    return events_until(engine, lambda events: engine.pending() == 0)


def ended(events: list[Event]) -> Generated:
    assert isinstance(events[-1], Generated), events
    return events[-1]


def refused(events: list[Event]) -> Rejected:
    assert isinstance(events[-1], Rejected), events
    return events[-1]


# -- what is asked ---------------------------------------------------------------------------------------------------


def test_a_plain_request_names_nothing_that_nobody_asked_for() -> None:
    path, body = request_of(work(), model="m", answers_before=0, max_answer_tokens=99)
    assert path == "/chat/completions"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 99,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_every_field_that_a_request_may_have_is_forwarded() -> None:
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "weather", "arguments": {"city": "Łódź"}}}],
    }
    everything = work(
        messages=(*HELLO, called, {"role": "tool", "content": "wet", "tool_call_id": "c"}),
        max_tokens=7, min_tokens=2, n=3, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.1,
        frequency_penalty=0.2, presence_penalty=0.3, logit_bias={5: -100.0}, stop=("x",), stop_token_ids=(9,),
        ignore_eos=True, seed=10, logprobs=True, top_logprobs=2, schema='{"type": "object"}',
        continue_final_message=True, template_variables={"fast": True}, reasoning_effort="low", tools=(TOOL,),
        tool_choice="=weather", parallel_tool_calls=False, stream=True,
    )  # fmt: skip
    _, body = request_of(everything, model="m", answers_before=1, max_answer_tokens=99)
    assert json.loads(body["messages"][1]["tool_calls"][0]["function"].pop("arguments")) == {"city": "Łódź"}
    assert body.pop("messages")[2] == {"role": "tool", "content": "wet", "tool_call_id": "c"}
    assert body == {
        "model": "m", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 7, "min_tokens": 2,
        "n": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1,
        "repeat_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.3, "logit_bias": {"5": -100.0},
        "stop": ["x"], "stop_token_ids": [9], "ignore_eos": True, "seed": 11, "logprobs": True, "top_logprobs": 2,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object"}},
        },
        "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False, "reasoning_effort": "low", "chat_template_kwargs": {"fast": True},
        "continue_final_message": True, "add_generation_prompt": False,
    }  # fmt: skip


def test_a_prompt_is_continued_and_no_conversation() -> None:
    path, body = request_of(
        work(prompt="Once", logprobs=True, top_logprobs=3), model="m", answers_before=0, max_answer_tokens=9
    )
    assert (path, body["prompt"], body["logprobs"]) == ("/completions", "Once", 3)
    assert "messages" not in body


@pytest.mark.parametrize(
    ("field", "value"), [("special_tokens", "text"), ("deterministic", True), ("max_reasoning_tokens", 5)]
)
def test_what_no_server_can_be_asked_for_is_refused_by_its_name(make_engine: Any, field: str, value: Any) -> None:
    said = refused(run(make_engine(), work(**{field: value})))
    assert said.permanent
    assert said.message.startswith(f"{field}: ")


# -- what comes back -------------------------------------------------------------------------------------------------


def test_an_answer_streams_and_is_whole_with_what_the_server_counted(
    server: ScriptedServer, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(asked: Asked) -> None:
        asked.head()
        asked.wfile.write(b": keepalive\n\n")
        asked.delta(role="assistant", content="")
        asked.delta(reasoning_content="Hm")
        asked.delta(reasoning=", well.")
        asked.delta(content="Grüezi ")
        asked.delta(content="☃\ud83d")
        asked.delta(finish_reason="stop")
        asked.usage(5, 9, prompt_tokens_details={"cached_tokens": 2}, completion_tokens_details={"reasoning_tokens": 4})

    server.script = script
    monkeypatch.setenv("IMPETUS_UPSTREAM_KEY", "s3cret")
    events = run(make_engine(), work(stream=True, temperature=0.0))
    assert events[0] == Started(1)
    pieces = [each for each in events if isinstance(each, Progress)]
    assert [(each.reasoning, each.text) for each in pieces] == [
        ("Hm", ""), (", well.", ""), ("", "Grüezi "), ("", "☃\ufffd"),
    ]  # fmt: skip
    result = ended(events)
    (answer,) = result.answers
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("Grüezi ☃\ufffd", "Hm, well.", "stop")
    assert (result.prompt_tokens, result.completion_tokens, result.cached_tokens, result.reasoning_tokens) == (
        5,
        9,
        2,
        4,
    )
    assert (result.model, result.sampling) == ("m", {"temperature": 0.0})
    assert 0 < result.first_token_s <= result.total_s
    asked = server.next_asked()
    assert (asked.path, asked.headers["Authorization"]) == ("/v1/chat/completions", "Bearer s3cret")


def test_who_does_not_stream_hears_the_end_alone_and_tokens_are_counted_by_pieces_without_usage(
    server: ScriptedServer, make_engine: Any
) -> None:
    def script(asked: Asked) -> None:
        asked.head()
        for text, reason in (("a", None), ("b", None), ("c", "length")):
            asked.event({"choices": [{"index": 0, "text": text, "finish_reason": reason}]})

    server.script = script
    events = run(make_engine(), work(prompt="Once"))
    assert events[:-1] == [Started(1)]
    assert (ended(events).text, ended(events).finish_reason, ended(events).completion_tokens) == ("abc", "length", 3)
    assert server.next_asked().path == "/v1/completions"


def test_a_server_that_knows_no_streams_is_understood_too(server: ScriptedServer, make_engine: Any) -> None:
    message = {"role": "assistant", "content": "Hi", "tool_calls": []}
    server.script = lambda asked: asked.answer(
        200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
    )
    assert (ended(run(make_engine(), work())).text, ended(run(make_engine(), work())).prompt_tokens) == ("Hi", 3)


def test_a_stream_in_chunks_of_http_is_put_together(server: ScriptedServer, make_engine: Any) -> None:
    def script(asked: Asked) -> None:
        asked.protocol_version = "HTTP/1.1"
        asked.send_response(200)
        asked.send_header("Content-Type", "text/event-stream; charset=utf-8")
        asked.send_header("Transfer-Encoding", "chunked")
        asked.end_headers()
        text = (
            'data: {"choices": [{"delta": {"content": "é☃"},\ndata: "finish_reason": "stop"}]}\r\n\r\ndata: [DONE]\n\n'
        )
        whole = text.encode()
        for part in (whole[:37], whole[37:38], whole[38:]):
            asked.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            asked.wfile.flush()
        asked.wfile.write(b"0\r\n\r\n")

    server.script = script
    assert ended(run(make_engine(), work())).text == "é☃"


def test_calls_of_tools_come_in_parts_by_index(server: ScriptedServer, make_engine: Any) -> None:
    def script(asked: Asked) -> None:
        asked.head()
        asked.delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "weather", "arguments": '{"ci'}}])
        asked.delta(tool_calls=[{"index": 0, "function": {"arguments": 'ty": 1}'}}])
        asked.delta(tool_calls=[{"index": 1, "function": {"name": "weather", "arguments": {"city": 2}}}])
        asked.delta(tool_calls=[{"index": 1, "id": "b", "function": {"name": "time", "arguments": ""}}])
        asked.delta(tool_calls=[{"index": 1, "id": "c", "function": {"name": "place"}}], finish_reason="stop")

    server.script = script
    engine = make_engine()
    (answer,) = ended(run(engine, work(tools=(TOOL,)))).answers
    assert answer.finish_reason == "tool_calls"
    assert answer.calls[0] == Call("weather", '{"city": 1}', "a")
    assert [call.name for call in answer.calls] == ["weather", "weather", "place"]
    assert len({call.id for call in answer.calls}) == 3
    (answer,) = ended(run(engine, work(tools=(TOOL,), parallel_tool_calls=False))).answers
    assert len(answer.calls) == 1


@pytest.mark.parametrize("knows_n", [True, False])
def test_two_answers_come_whether_the_server_makes_several_or_one_a_request(
    server: ScriptedServer, make_engine: Any, knows_n: bool
) -> None:
    def script(asked: Asked) -> None:
        asked.head()
        seed = asked.body["seed"]
        indexes = range(asked.body.get("n", 1) if knows_n else 1)
        for piece, reason in (("a", None), ("b", "stop")):
            for index in indexes:
                asked.delta(index, reason, content=f"{piece}{seed + index}")
        asked.usage(4, 2 * len(indexes))

    server.script = script
    events = run(make_engine(), work(n=2, seed=5, stream=True))
    assert [answer.text for answer in ended(events).answers] == ["a5b5", "a6b6"]
    assert (ended(events).prompt_tokens, ended(events).completion_tokens) == (4, 4)
    streamed = {0: "", 1: ""}
    for each in events:
        if isinstance(each, Progress):
            streamed[each.choice] += each.text
    assert streamed == {0: "a5b5", 1: "a6b6"}


def test_probabilities_come_in_both_forms_and_without_infinities(server: ScriptedServer, make_engine: Any) -> None:
    top = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": float("-inf")}]
    chat = {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": top}]}
    old = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": None, "a": -0.5}]}

    def script(asked: Asked) -> None:
        asked.head()
        has = chat if "messages" in asked.body else old
        asked.event({"choices": [{"delta": {"content": "a"}, "logprobs": has, "finish_reason": "stop"}]})

    server.script = script
    for each in (work(logprobs=True, top_logprobs=2), work(prompt="Once", logprobs=True, top_logprobs=2)):
        assert ended(run(make_engine(), each)).answers[0].logprobs == (
            Likely("a", -0.5, (("a", -0.5), ("b", -9999.0))),
        )


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"schema": '{"type": "object"}'}, "response_format"),
        ({"tools": (TOOL,), "tool_choice": "required"}, "tool_choice"),
        ({"tools": (TOOL,), "tool_choice": "=weather"}, "tool_choice"),
    ],
)
def test_an_answer_that_is_not_what_was_promised_is_none(
    server: ScriptedServer, make_engine: Any, fields: dict[str, Any], named: str
) -> None:
    def script(asked: Asked) -> None:
        asked.head()
        asked.delta(content="Sure!", finish_reason="stop")

    server.script = script
    said = refused(run(make_engine(), work(**fields)))
    assert named in said.message
    assert not said.permanent


# -- how many, and how they end --------------------------------------------------------------------------------------


def test_no_more_requests_are_out_than_are_allowed_and_the_rest_follow(
    server: ScriptedServer, make_engine: Any
) -> None:
    gate, counted, lock = threading.Semaphore(0), [0, 0], threading.Lock()

    def script(asked: Asked) -> None:
        with lock:
            counted[0] += 1
            counted[1] = max(counted)
        assert gate.acquire(timeout=LIMIT_S)
        with lock:
            counted[0] -= 1
        asked.head()
        asked.delta(content="x", finish_reason="stop")

    server.script = script
    engine = make_engine(max_concurrent=2)
    for each in range(5):
        engine.admit(work(each))
    events = events_until(engine, lambda events: len(events) == 2)
    assert events == [Started(0), Started(1)]
    server.next_asked(), server.next_asked()
    gate.release(5)
    events += events_until(engine, lambda events: engine.pending() == 0)
    assert sum(isinstance(each, Generated) for each in events) == 5
    assert counted[1] == 2


def test_cancelling_closes_the_connection_and_gives_what_came(server: ScriptedServer, make_engine: Any) -> None:
    def script(asked: Asked) -> None:
        asked.head()
        asked.delta(content="Once ")
        asked.delta(tool_calls=[{"index": 0, "function": {"name": "weather", "arguments": '{"ha'}}])
        asked.delta(content="upon")
        asked.until_closed()

    server.script = script
    engine = make_engine(max_concurrent=1)
    engine.admit(work(1, stream=True))
    engine.admit(work(2))
    events_until(engine, lambda events: any(isinstance(each, Progress) and each.text == "upon" for each in events))
    engine.cancel(2)
    engine.cancel(1)
    engine.cancel(7)
    never, begun = engine.step()
    assert isinstance(never, Generated)
    assert isinstance(begun, Generated)
    assert (never.id, never.text, never.finish_reason, never.completion_tokens) == (2, "", "cancelled", 0)
    assert (begun.id, begun.text, begun.finish_reason, begun.completion_tokens) == (1, "Once upon", "cancelled", 3)
    assert begun.answers[0].calls == ()
    assert server.closed.acquire(timeout=LIMIT_S)
    assert engine.pending() == 0


def test_a_cancelled_request_for_several_answers_says_so_in_the_last_of_them(
    server: ScriptedServer, make_engine: Any
) -> None:
    def script(asked: Asked) -> None:
        asked.head()
        asked.delta(0, content="half")
        asked.delta(1, "stop", content="whole")
        asked.until_closed()

    server.script = script
    engine = make_engine()
    engine.admit(work(n=2, stream=True))
    events_until(engine, lambda events: sum(isinstance(each, Progress) for each in events) == 2)
    engine.cancel(1)
    (said,) = engine.step()
    assert isinstance(said, Generated)
    assert [(each.text, each.finish_reason) for each in said.answers] == [("whole", "stop"), ("half", "cancelled")]


def test_closing_the_engine_closes_its_connections(server: ScriptedServer, make_engine: Any) -> None:
    server.script = lambda asked: asked.until_closed()
    engine = make_engine()
    engine.admit(work())
    engine.step()
    server.next_asked()
    engine.close()
    assert server.closed.acquire(timeout=LIMIT_S)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 301])
def test_a_request_at_fault_fails_for_good_with_the_servers_own_sentence(
    server: ScriptedServer, make_engine: Any, status: int
) -> None:
    server.script = lambda asked: asked.answer(status, {"error": {"message": "the model\nhas \x1b[31mno " + "x" * 400}})
    said = refused(run(make_engine(), work()))
    assert said.permanent
    assert said.message.startswith(f"the upstream answers {status}: the model has \ufffd[31mno xxx")
    assert len(said.message) < 340
    assert said.message.isprintable()


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504])
def test_a_server_at_fault_leaves_the_request_worth_another_try(
    server: ScriptedServer, make_engine: Any, status: int
) -> None:
    server.script = lambda asked: asked.answer(status, "<p>busy</p>")
    said = refused(run(make_engine(), work()))
    assert (said.permanent, said.message) == (False, f"the upstream answers {status}: <p>busy</p>")


def test_the_key_is_in_no_sentence_though_the_server_repeats_it(
    server: ScriptedServer, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPETUS_UPSTREAM_KEY", "s3cret")
    server.script = lambda asked: asked.answer(401, {"error": f"bad key {asked.headers['Authorization']}"})
    engine = make_engine()
    assert refused(run(engine, work())).message == "the upstream answers 401: bad key Bearer ***"
    assert "s3cret" not in repr(engine.info)


def _half(asked: Asked) -> None:
    asked.head()
    asked.delta(content="Once upon")


def _error_in_the_middle(asked: Asked) -> None:
    _half(asked)
    asked.event({"error": {"message": "out of memory", "code": 500}})


def _llama_error(asked: Asked) -> None:
    _half(asked)
    asked.wfile.write(b'error: {"message": "out of memory"}\n\n')


def _garbage(asked: Asked) -> None:
    _half(asked)
    asked.event("{not JSON")


def _silence(asked: Asked) -> None:
    _half(asked)
    asked.until_closed()


def _no_http(asked: Asked) -> None:
    asked.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n")


def _too_short(asked: Asked) -> None:
    asked.send_response(200)
    asked.send_header("Content-Type", "application/json")
    asked.send_header("Content-Length", "99")
    asked.end_headers()
    asked.wfile.write(b'{"choices"')


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (_half, "ended its answer before it was whole"),
        (_error_in_the_middle, "failed while it answered: out of memory"),
        (_llama_error, "failed while it answered: out of memory"),
        (_garbage, "no JSON object: '{not JSON'"),
        (_silence, "fell silent"),
        (Asked.until_closed, "fell silent"),  # no headers ever
        (_no_http, "broke"),
        (_too_short, "no JSON object"),
        (lambda asked: asked.answer(200, "[1]"), "no JSON object"),
        (lambda asked: asked.answer(200, "[" * 100_000), "no JSON object"),
        (lambda asked: asked.answer(200, {"choices": []}), "before it was whole"),
        (lambda asked: None, "broke"),
    ],
)
def test_half_an_answer_and_garbage_are_failures_worth_another_try_and_the_next_request_is_served(
    server: ScriptedServer, make_engine: Any, script: Callable[[Asked], None], words: str
) -> None:
    server.script = script
    engine = make_engine(IMPATIENT)
    said = refused(run(engine, work(stream=True)))
    assert words in said.message
    assert not said.permanent
    assert said.message.isprintable()

    def good(asked: Asked) -> None:
        asked.head()
        asked.delta(content="x", finish_reason="stop")

    server.script = good
    assert ended(run(engine, work(2))).text == "x"


_anything = st.sampled_from(
    [None, True, 0, 1, -1, 5, 1.5, float("nan"), "", "x", "\ud800", "stop", "abort", [], {}, [1], [None], {"a": 1}]
)


def _object(**fields: Any) -> st.SearchStrategy[Any]:
    """Of these fields some, each as it should be or anything else; or something else altogether."""
    return st.fixed_dictionaries({}, optional={name: _anything | each for name, each in fields.items()}) | _anything


_call = _object(index=_anything, id=_anything, function=_object(name=_anything, arguments=_anything))
_likely = _object(token=_anything, logprob=_anything)
_token = _object(token=_anything, logprob=_anything, top_logprobs=st.lists(_likely, max_size=2))
_logprobs = _object(
    content=st.lists(_token, max_size=2),
    tokens=st.lists(_anything, max_size=2),
    token_logprobs=st.lists(_anything, max_size=2),
    top_logprobs=st.lists(st.dictionaries(st.just("x"), _anything), max_size=2),
)
_delta = _object(content=_anything, reasoning=_anything, tool_calls=st.lists(_call, max_size=3))
_choice = _object(index=_anything, text=_anything, delta=_delta, logprobs=_logprobs, finish_reason=_anything)
_chunks = st.lists(
    st.fixed_dictionaries(
        {"choices": st.lists(_choice, max_size=2) | _anything},
        optional={"error": _object(code=_anything, message=_anything), "usage": _object(prompt_tokens=_anything)},
    ),
    max_size=3,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_chunks)
def test_whatever_json_comes_it_is_an_answer_or_an_error_of_the_upstream(chunks: list[dict[str, Any]]) -> None:
    answers = Answers(work(n=2, logprobs=True, tools=(TOOL,)))
    with contextlib.suppress(UpstreamError):
        for chunk in chunks:
            for progress in answers.take(chunk):
                (progress.text + progress.reasoning).encode()
        for answer in (*answers.so_far(), *answers.whole()):
            (answer.text + (answer.reasoning or "")).encode()
            assert all(call.name and call.id and call.arguments.encode() for call in answer.calls)
            assert all(-9999 <= each.logprob <= 0 for each in answer.logprobs or ())


def test_a_server_that_restarts_costs_no_request(server: ScriptedServer, make_engine: Any) -> None:
    engine = make_engine(Patience(away_s=LIMIT_S))
    server.end()
    engine.admit(work())
    assert engine.step() == [Started(1)]
    for _ in range(5):
        assert engine.step() == []
    with socket.create_server(("127.0.0.1", server.server_address[1])) as again:
        again.settimeout(LIMIT_S)
        accepted, _ = again.accept()
    with accepted:
        request = accepted.recv(65536)
        assert request.startswith(b"POST /v1/chat/completions")
        accepted.sendall(
            b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n"
            b'{"choices": [{"message": {"content": "back"}, "finish_reason": "stop"}]}'
        )
    assert ended(events_until(engine, lambda events: engine.pending() == 0)).text == "back"


@pytest.mark.parametrize(("resets", "served"), [(3, True), (4, False)])
def test_a_connection_that_is_reset_before_an_answer_is_tried_again_a_few_times(
    server: ScriptedServer, make_engine: Any, resets: int, served: bool
) -> None:
    left = iter(range(resets))

    def script(asked: Asked) -> None:
        if next(left, None) is not None:
            # With no time to linger, what is sent at the close is a reset.
            asked.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            asked.close_connection = True
            for file in (asked.rfile, asked.wfile, asked.connection):
                file.close()
            return
        asked.head()
        asked.delta(content="x", finish_reason="stop")

    server.script = script
    patient = Patience(away_s=LIMIT_S)
    (last,) = run(make_engine(patient), work())[1:]
    assert isinstance(last, Generated) is served, last


def test_a_server_that_stays_away_is_a_failure_worth_another_try_and_waiting_can_be_cancelled() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    server = ScriptedServer()
    try:
        info = open_upstream(EngineConfig("generation", backend="openai", upstream=server.url)).info
    finally:
        server.end()
    engine = UpstreamEngine(read_address(url), info, {"m": "m"}, patience=IMPATIENT)
    said = refused(run(engine, work()))
    assert (said.permanent, said.message) == (False, f"the upstream at {url} takes no connection (Connection refused)")
    patient = UpstreamEngine(read_address(url), info, {"m": "m"})
    patient.admit(work())
    patient.step()
    patient.cancel(1)
    (cancelled,) = patient.step()
    assert isinstance(cancelled, Generated)
    assert cancelled.finish_reason == "cancelled"
    patient.close()


def test_it_makes_no_embeddings(make_engine: Any) -> None:
    engine = make_engine()
    engine.admit(EmbeddingWork(1, []))
    assert "no embeddings" in refused(engine.step()).message


# -- opening ---------------------------------------------------------------------------------------------------------


def test_the_dispatcher_opens_it_and_it_says_what_it_is(server: ScriptedServer) -> None:
    server.list_models = lambda asked: asked.answer(200, {"data": [{"id": "/models/qwen"}, {"id": "org/llama"}]})
    tried: list[str] = []
    config = EngineConfig("generation", backend="openai", upstream=server.url, max_concurrent=3)
    info = open_engine(config, on_attempt=tried.append).info
    assert (info.kind, info.backend, info.device, info.precision) == ("generation", "openai", "upstream", "unknown")
    assert (info.model, info.max_concurrent) == ("qwen", 3)
    assert set(info.model_aliases) == {"qwen", "/models/qwen", "org/llama"}
    assert tried == ["openai", ""]


@pytest.mark.parametrize(
    ("given", "asked_for"),
    [("qwen", "/models/qwen"), ("llama", "llama:latest"), ("org/other", "org/other"), (None, "/models/qwen")],
)
def test_a_model_is_asked_for_as_the_server_calls_it(
    server: ScriptedServer, make_engine: Any, given: str | None, asked_for: str
) -> None:
    server.list_models = lambda asked: asked.answer(200, {"data": [{"id": "/models/qwen"}, {"id": "llama:latest"}]})
    server.script = lambda asked: asked.answer(404, "no")
    engine = make_engine(model=given)
    run(engine, work())
    assert server.next_asked().body["model"] == asked_for
    if given is not None:
        run(engine, work(model=given))
        assert server.next_asked().body["model"] == asked_for
    run(engine, work(model="llama:latest"))
    assert server.next_asked().body["model"] == "llama:latest"
    assert "has no 'clever'" in refused(run(engine, work(model="clever"))).message


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, "no", "does its URL end with /v1"),
        (401, {"error": "key"}, "IMPETUS_UPSTREAM_KEY"),
        (500, "", "answers 500"),
        (200, {"data": []}, "names no model"),
        (200, "<html>", "no list of models"),
        (200, {"data": [1]}, "no list of models"),
    ],
)
def test_a_server_that_names_no_models_is_not_served_from(
    server: ScriptedServer, make_engine: Any, status: int, body: Any, words: str
) -> None:
    server.list_models = lambda asked: asked.answer(status, body)
    with pytest.raises(BackendUnavailableError, match=words):
        make_engine()


def test_a_list_that_cannot_be_read_is_no_matter_where_the_model_is_known(
    server: ScriptedServer, make_engine: Any
) -> None:
    server.list_models = lambda asked: asked.answer(200, "")
    assert make_engine(model="mine").info.model_aliases == ("mine",)


def test_where_nothing_answers_the_sentence_says_what_to_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(
        BackendUnavailableError, match=r"nothing at http://127.0.0.1:\d+/v1 answers .* start the server"
    ):
        open_upstream(EngineConfig("generation", backend="openai", upstream=url))
    with pytest.raises(BackendUnavailableError, match="--upstream"):
        open_upstream(EngineConfig("generation", backend="openai"))
    with pytest.raises(BackendUnavailableError, match="--special-tokens"):
        open_upstream(EngineConfig("generation", backend="openai", upstream=url, special_tokens="text"))


def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPETUS_UPSTREAM_KEY", "s3cret\r\nEvil: 1")
    with pytest.raises(BackendUnavailableError, match="IMPETUS_UPSTREAM_KEY") as caught:
        open_upstream(EngineConfig("generation", backend="openai", upstream="http://127.0.0.1:1/v1"))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:80", "redis://h/v1", "http://", "http://u:s3cret@h/v1", "http://s3cret@h", "http://h:x/v1",
     "http://h:99999/v1", "http://h/v1?key=s3cret", "http://h/v1#a", "http://h/v 1", "http://[::1/v1",
     "http://h/\r\nX: 1"],
)  # fmt: skip
def test_a_url_that_is_none_or_holds_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(BackendUnavailableError) as caught:
        read_address(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8080/v1/", "http://127.0.0.1:8080/v1"),
        ("https://example.org/api/v1", "https://example.org/api/v1"),
        ("http://[::1]:1/v1", "http://[::1]:1/v1"),
    ],
)
def test_an_address_is_shown_as_the_url_that_it_is(url: str, shown: str) -> None:
    assert str(read_address(url)) == shown
    assert str(read_address(shown)) == shown
