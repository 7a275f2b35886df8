"""Parts of messages that are no text: an image passes to an upstream server as it is, and fails alone elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from impetus_producer import JobFailedError, Producer
from tests.backends.scripted_server import Asked, ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..conftest import Fleet

pytestmark = pytest.mark.system
PARTS: list[dict[str, Any]] = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
    {"type": "x-of-tomorrow", "depth": [[1, 2.5, None]]},
]
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": PARTS},
]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


def say_a_cat(asked: Asked) -> None:
    asked.head()
    asked.delta(content="A cat.")
    asked.delta(finish_reason="stop")
    asked.usage(9, 3)


def test_an_image_reaches_the_upstream_server_as_it_was_sent(fleet: Fleet, server: ScriptedServer) -> None:
    server.script = say_a_cat
    fleet.start("--upstream", server.url, "--generation-backend", "openai", roles="generation")
    assert Producer(fleet.url).generate(messages=MESSAGES).result(30).text == "A cat."
    assert server.next_asked().body["messages"] == MESSAGES


def test_an_image_fails_alone_where_the_model_reads_text(fleet: Fleet) -> None:
    fleet.start(roles="generation")
    producer = Producer(fleet.url)
    with_image, without = producer.generate(messages=MESSAGES), producer.generate(messages=MESSAGES[:1])
    with pytest.raises(JobFailedError, match=r"messages\.1\.content\.1: an image, and this model reads text"):
        with_image.result(30)
    assert without.result(30).text
