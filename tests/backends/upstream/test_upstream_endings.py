"""Generation by another server: how many requests are out, and how they end and may fail."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from impetus_backends.engine_config import EngineConfig
from impetus_backends.protocol import EmbeddingWork, Generated, Progress, Started
from impetus_backends.upstream.address import read_address
from impetus_backends.upstream.answers import Answers
from impetus_backends.upstream.engine import UpstreamEngine, open_upstream
from impetus_backends.upstream.exchange import Patience
from impetus_backends.upstream.failures import UpstreamError

from ..scripted_server import LIMIT_S, Asked, ScriptedServer
from .asking import IMPATIENT, TOOL, ended, events_until, refused, run, work

if TYPE_CHECKING:
    from collections.abc import Callable


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


def test_a_cancelled_request_for_several_answers_says_so_in_each_that_was_not_whole(
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
    assert [(each.text, each.finish_reason) for each in said.answers] == [("half", "cancelled"), ("whole", "stop")]


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
    engine = make_engine(IMPATIENT if words == "fell silent" else None)
    said = refused(run(engine, work(stream=True)))
    assert words in said.message
    assert not said.permanent
    assert said.message.isprintable()

    def good(asked: Asked) -> None:
        asked.head()
        asked.delta(content="x", finish_reason="stop")

    server.script = good
    engine._patience = Patience()
    assert ended(run(engine, work(2))).text == "x"


def _reset(asked: Asked) -> None:
    # With no time to linger, what is sent at the close is a reset.
    asked.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    asked.close_connection = True
    for file in (asked.rfile, asked.wfile, asked.connection):
        file.close()


def _whole(asked: Asked) -> None:
    asked.head()
    asked.delta(content="whole")
    asked.delta(finish_reason="stop")


def _whole_and_silence(asked: Asked) -> None:
    _whole(asked)
    asked.until_closed()


def _whole_and_reset(asked: Asked) -> None:
    _whole(asked)
    _reset(asked)


def _whole_and_garbage(asked: Asked) -> None:
    _whole(asked)
    asked.event("{not JSON")


@pytest.mark.parametrize("script", [_whole, _whole_and_silence, _whole_and_reset, _whole_and_garbage])
def test_an_answer_that_is_whole_is_one_however_the_connection_ends(
    server: ScriptedServer, make_engine: Any, script: Callable[[Asked], None]
) -> None:
    server.script = script
    # No longer patient than for the silence afterwards, and long enough for a server that has little of the machine.
    events = run(make_engine(replace(IMPATIENT, first_s=LIMIT_S, between_s=3.0)), work(n=1, stream=True))
    assert (ended(events).text, ended(events).finish_reason) == ("whole", "stop")


_anything = st.sampled_from(
    [
        None,
        True,
        0,
        1,
        -1,
        5,
        1.5,
        10**400,
        -(10**400),
        float("nan"),
        "",
        "x",
        "\ud800",
        "stop",
        "abort",
        [],
        {},
        [1],
        [None],
        {"a": 1},
    ]
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
            _reset(asked)
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
    engine = UpstreamEngine(read_address(url), info, {"m": "m"}, patience=Patience(away_s=0.0))
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
