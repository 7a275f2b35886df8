"""A gateway that embeds no text twice: one store for it, for `embed_batch` and for `impetus embed`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from redis import Redis

from impetus_producer import Document, EmbeddedDocument, Producer, RedisStore, embed_batch, embed_documents
from impetus_producer.bulk.recall import SURE_S, Recall
from tests.producer.servers.valkey import Valkey
from tests.producer.stock_worker import PROVENANCE, QUEUES, embedding_of, vector_of, working

from .serving import Serving, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system


class Model:
    """Counts what it computes, and may become another."""

    def __init__(self) -> None:
        self.computed: Counter[str] = Counter()
        self.fingerprint = "one"

    def work(self, function: str, request: dict[str, Any]) -> Any:
        asked = request["input"]
        self.computed.update([asked] if isinstance(asked, str) else asked)
        return embedding_of(asked) | {"provenance": PROVENANCE | {"fingerprint": self.fingerprint}}


@pytest.fixture
def model(redis_url: str) -> Iterator[Model]:
    model = Model()
    with working(redis_url, model.work), Redis.from_url(redis_url) as connection:
        always = {"state": "idle", "queues": ",".join(QUEUES), "last_heartbeat": "2999-01-01T00:00:00Z"}
        connection.hset("rq:worker:stock", mapping=always)
        connection.sadd("rq:workers", "rq:worker:stock")
        yield model


def ask(served: Serving, texts: list[str], **more: Any) -> tuple[Any, Any]:
    answer = served.post("/v1/embeddings", {"input": texts, **more})
    assert answer.status_code == 200, answer.text
    return np.array([each["embedding"] for each in answer.json()["data"]], np.float32), answer


def right(texts: list[str]) -> Any:
    return np.array([vector_of(text) for text in texts], np.float32)


def test_equal_texts_are_computed_once_by_whoever_asked_first(redis_url: str, model: Model) -> None:
    now = 0.0
    with RedisStore(redis_url) as store, serving(redis_url, recall=Recall(store, lambda: now)) as served:
        vectors, answer = ask(served, ["a", "b", "a"])
        np.testing.assert_array_equal(vectors, right(["a", "b", "a"]))
        assert "x-job-id" in answer.headers
        embed_batch(Producer(redis_url), ["c"], store=store)
        documents = [Document(text, text) for text in "abcd"]
        found = list(embed_documents(Producer(redis_url), documents, store=store))
        assert [each.id for each in found] == list("abcd")
        texts = list("dcba")
        for body in ({"encoding_format": "float"}, {"dimensions": None}):
            vectors, answer = ask(served, texts, **body)
            np.testing.assert_array_equal(vectors, right(texts))
        assert "x-job-id" not in answer.headers
        assert answer.json()["usage"]["prompt_tokens"] == 0
        assert {text: model.computed[text] for text in "abcd"} == dict.fromkeys("abcd", 1)
        prompts = ({"prompt_name": "query"}, {"prompt": "query"}, {"prompt": ""}, {"input_type": "query"})
        for prompt in prompts:
            assert "x-job-id" in ask(served, ["d"], **prompt)[1].headers
        (asked,) = list(embed_documents(Producer(redis_url), [Document("d", "d")], prompt="query", store=store))
        assert isinstance(asked, EmbeddedDocument)
        assert all("x-job-id" not in ask(served, ["d"], **prompt)[1].headers for prompt in prompts)
        assert model.computed["d"] == 1 + len(prompts)
        # Now and then it is found out anew which model is served, and another one's vectors are not taken.
        model.fingerprint = "two"
        now = SURE_S + 1
        ask(served, ["a"])
        ask(served, ["a", "b"])
        assert (model.computed["a"], model.computed["b"]) == (2, 2)


def test_vectors_of_two_models_are_not_put_together(redis_url: str, model: Model) -> None:
    with RedisStore(redis_url) as store, serving(redis_url, recall=Recall(store)) as served:
        ask(served, ["a"])
        model.fingerprint = "two"
        vectors, _ = ask(served, ["a", "b"])
        np.testing.assert_array_equal(vectors, right(["a", "b"]))
        assert model.computed == {"a": 2, "b": 2}
        embed_batch(Producer(redis_url), ["a", "b", "c"], store=store)
        model.fingerprint = "three"
        made = embed_batch(Producer(redis_url), ["c", "d"], store=store)
        np.testing.assert_array_equal(made, right(["c", "d"]))


def test_a_store_that_is_away_is_done_without(redis_url: str, model: Model, tmp_path: Path) -> None:
    server = Valkey(tmp_path)
    with RedisStore(server.url, patience_s=0) as store, serving(redis_url, recall=Recall(store)) as served:
        ask(served, ["a"])
        server.kill()
        for texts in (["a"], ["a", "b"]):
            vectors, _ = ask(served, texts)
            np.testing.assert_array_equal(vectors, right(texts))
