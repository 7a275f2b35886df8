"""Generation by another server: what its bytes are read as, whatever its headers call them."""

from __future__ import annotations

import gzip
import io
import json
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.upstream import events
from impetus_backends.upstream.events import chunks_of
from impetus_backends.upstream.failures import UpstreamError

from .asking import ended, refused, run, work

if TYPE_CHECKING:
    from ..scripted_server import Asked, ScriptedServer

ONE: dict[str, Any] = {"choices": [{"delta": {"content": "é☃"}}]}
TWO: dict[str, Any] = {"choices": []}
A, B = (json.dumps(each, ensure_ascii=False).encode() for each in (ONE, TWO))
WHOLE = {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    "body",
    [
        b"data: " + A + b"\n\ndata: " + B + b"\n\ndata: [DONE]\n\n",
        b"data:" + A + b"\r\n\r\ndata:" + B + b"\r\n\r\ndata:[DONE]",
        b"data: " + A + b"\r\rdata: " + B + b"\r\r",
        b"\xef\xbb\xbfdata: " + A + b"\n\ndata: " + B,
        b"\n\n: hello\n\n:\nid: 7\nretry: 10\nevent: message\ndata: " + A + b"\n\n: wait\n\n\ndata: " + B + b"\n\n",
        b"data:\n\ndata: \n\ndata: " + A + b"\n\ndata\n\ndata: " + B + b"\n\n",
        b"data: " + A.replace(b", ", b",\ndata: ") + b"\n\ndata: " + B.replace(b":", b":\ndata: ") + b"\n\n",
        b"data: " + A + b"\n\ndata: " + B + b"\n\ndata: [DONE]\n\ndata: " + A + b"\n\ndata: {\n\n",
    ],
)
def test_events_are_read_as_their_standard_says(body: bytes) -> None:
    assert list(chunks_of(io.BytesIO(body))) == [ONE, TWO]


@pytest.mark.parametrize("space", ["", "\n", "\r\n\r\n  "])
@pytest.mark.parametrize("indent", [None, 2])
def test_one_document_is_read_however_it_is_laid_out(space: str, indent: int | None) -> None:
    body = space + json.dumps(WHOLE, indent=indent).replace("\n", "\r\n")
    assert list(chunks_of(io.BytesIO(body.encode()))) == [WHOLE]


@pytest.mark.parametrize(
    ("body", "said", "permanent"),
    [
        (b'event: error\ndata: {"message": "no room", "code": 500}\n\n', "no room", False),
        (b'event: error\ndata: {"error": {"message": "too long", "code": 400}}\n\n', "too long", True),
        (b"event: error\ndata: no room\n\n", "no room", False),
        (b'error: {"message": "too long", "code": "400"}\n\n', "too long", True),
        (b"<html>\n<body>Bad gateway</body>\n</html>", "no JSON object: '<html> <body>Bad gateway", False),
        (b"Internal Server Error", "no JSON object: 'Internal Server Error'", False),
        (b"data: null\n\n", "no JSON object: 'null'", False),
    ],
)
def test_what_is_no_answer_is_an_error_that_repeats_what_the_server_says(
    body: bytes, said: str, permanent: bool
) -> None:
    with pytest.raises(UpstreamError) as caught:
        list(chunks_of(io.BytesIO(body)))
    assert said in str(caught.value)
    assert caught.value.permanent is permanent


@pytest.mark.parametrize("body", [b"data: " + b"x" * 99, b"data: 12345\n" * 9, b"{" + b"\n1234567" * 9])
def test_what_is_too_long_is_not_kept(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_LONGEST", 40)
    with pytest.raises(UpstreamError, match="more than 40 bytes"):
        list(chunks_of(io.BytesIO(body)))


@pytest.mark.parametrize("header", ["application/json", "text/plain", "text/event-stream; charset=utf-8", None])
@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("status", [200, 201])
def test_the_type_that_a_header_states_does_not_matter(
    server: ScriptedServer, make_engine: Any, header: str | None, streams: bool, status: int
) -> None:
    def script(asked: Asked) -> None:
        asked.send_response(status)
        if header is not None:
            asked.send_header("Content-Type", header)
        asked.end_headers()
        if streams:
            asked.delta(content="Hi")
            asked.delta(finish_reason="stop")
        else:
            asked.wfile.write(json.dumps(WHOLE).encode())

    server.script = script
    assert ended(run(make_engine(), work())).text == "Hi"


@pytest.mark.parametrize(("status", "words"), [(200, "packs its answer (gzip)"), (500, "the upstream answers 500")])
def test_a_packed_answer_that_nobody_asked_for_is_said_to_be_one(
    server: ScriptedServer, make_engine: Any, status: int, words: str
) -> None:
    def script(asked: Asked) -> None:
        asked.send_response(status)
        asked.send_header("Content-Encoding", "GZip")
        asked.end_headers()
        asked.wfile.write(gzip.compress(json.dumps(WHOLE).encode()))

    server.script = script
    said = refused(run(make_engine(), work()))
    assert words in said.message
    assert said.message.isascii()
    assert not said.permanent
    assert server.next_asked().headers["Accept-Encoding"] == "identity"


def test_an_answer_that_comes_before_the_server_has_heard_all_is_read(
    server: ScriptedServer, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(asked: Asked) -> None:
        asked.server.asked.put(asked)
        asked.answer(413, {"error": "too large"})

    monkeypatch.setattr(server.RequestHandlerClass, "do_POST", refuse)
    said = refused(run(make_engine(), work(messages=({"role": "user", "content": "x" * 20_000_000},))))
    assert (said.message, said.permanent) == ("the upstream answers 413: too large", True)
    assert server.asked.qsize() == 1


def test_a_redirect_is_not_followed_and_says_where_it_points(server: ScriptedServer, make_engine: Any) -> None:
    def script(asked: Asked) -> None:
        asked.send_response(307)
        asked.send_header("Location", "https://elsewhere/v1?key=s3cret")
        asked.end_headers()

    server.script = script
    said = refused(run(make_engine(), work()))
    assert (said.message, said.permanent) == ("the upstream answers 307: https://elsewhere/v1", True)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("after", [None, "0", "soon", formatdate(0, usegmt=True)])
def test_a_busy_server_is_asked_again(server: ScriptedServer, make_engine: Any, status: int, after: str | None) -> None:
    left = iter(range(2))

    def script(asked: Asked) -> None:
        if next(left, None) is None:
            asked.answer(200, WHOLE)
            return
        asked.send_response(status)
        if after is not None:
            asked.send_header("Retry-After", after)
        asked.end_headers()

    server.script = script
    assert ended(run(make_engine(), work(stream=True))).text == "Hi"
    assert server.asked.qsize() == 3


@pytest.mark.parametrize("after", ["3600", "inf", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_server_that_is_busy_for_longer_leaves_the_request_to_a_later_try(
    server: ScriptedServer, make_engine: Any, after: str
) -> None:
    def script(asked: Asked) -> None:
        asked.send_response(429)
        asked.send_header("Retry-After", after)
        asked.end_headers()

    server.script = script
    said = refused(run(make_engine(), work()))
    assert (said.message, said.permanent) == ("the upstream answers 429", False)
    assert server.asked.qsize() == 1


def test_a_request_that_waits_for_a_busy_server_can_be_cancelled(server: ScriptedServer, make_engine: Any) -> None:
    def script(asked: Asked) -> None:
        asked.send_response(503)
        asked.send_header("Retry-After", "20")
        asked.end_headers()

    server.script = script
    engine = make_engine()
    engine.admit(work())
    engine.step()
    server.next_asked()
    engine.cancel(1)
    assert ended(engine.step()).finish_reason == "cancelled"


def test_the_key_is_in_no_sentence_of_a_stream_either(
    server: ScriptedServer, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPETUS_UPSTREAM_KEY", "s3cret")

    def script(asked: Asked) -> None:
        asked.head()
        asked.event({"error": f"bad key {asked.headers['Authorization']}"})

    server.script = script
    assert "bad key Bearer ***" in refused(run(make_engine(), work())).message
