"""Another server as an engine: its address, its models and its key."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.dispatcher import open_engine
from impetus_backends.engine_config import EngineConfig
from impetus_backends.errors import BackendUnavailableError
from impetus_backends.upstream.address import read_address
from impetus_backends.upstream.engine import open_upstream

from .asking import refused, run, work

if TYPE_CHECKING:
    from ..scripted_server import ScriptedServer


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
