"""What a broken or hostile writer left in the place of results, while many documents are embedded: each fails alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from impetus_producer import (
    Producer,
    ServerDataError,
    embed_documents,
)
from impetus_producer.bulk.run import EmbeddedDocument
from impetus_producer.documents import Document, FailedDocument
from impetus_producer.enqueueing import jobs

from ..stock_worker import StockWorker, embedding_of, honest_work, vector_of
from .unreadable import UNREADABLE, encoded, end

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

pytestmark = pytest.mark.system


class RawWorker(StockWorker):
    """Hands jobs of one text each to the test, by id and text, with nothing read or written by RQ's classes."""

    def __init__(self, redis_url: str, work: Callable[[Redis, str, str], None]) -> None:
        super().__init__(redis_url, honest_work)
        self._raw = work

    def _do(self, job_id: str) -> None:
        data: Any = self._connection.hget(jobs.job_key(job_id), "data")
        (text,) = json.loads(data)[2][0]["input"]
        self._raw(self._connection, job_id, text)


def outcomes_of(producer: Producer, redis_url: str, work: Callable[[Redis, str, str], None]) -> list[Any]:
    """Of the documents `good`, `bad` and `last`, one job each."""
    worker = RawWorker(redis_url, work)
    worker.start()
    try:
        documents = [Document(text, text) for text in ("good", "bad", "last")]
        return list(embed_documents(producer, documents, texts_per_job=1, max_backlog_jobs=8))
    finally:
        worker.stop()


@pytest.mark.parametrize("fields", UNREADABLE.values(), ids=UNREADABLE)
def test_a_result_that_cannot_be_read_fails_its_document_alone(
    redis_url: str, producer: Producer, fields: dict[str, Any]
) -> None:
    def work(connection: Redis, job_id: str, text: str) -> None:
        good = {"type": 1, "return_value": encoded(embedding_of([text]))}
        end(connection, job_id, **(fields if text == "bad" else good))

    good, bad, last = outcomes_of(producer, redis_url, work)
    assert isinstance(bad, FailedDocument)
    assert "cannot be read" in bad.reason
    assert len(bad.reason) < 1000
    assert [list(each.vector) for each in (good, last)] == [vector_of("good"), vector_of("last")]


def test_a_key_of_another_type_in_a_results_place_fails_its_document_alone(redis_url: str, producer: Producer) -> None:
    def work(connection: Redis, job_id: str, text: str) -> None:
        if text == "bad":
            connection.set(jobs.results_key(job_id), "x")
        else:
            end(connection, job_id, type=1, return_value=encoded(embedding_of([text])))

    good, bad, last = outcomes_of(producer, redis_url, work)
    assert isinstance(bad, FailedDocument)
    assert "WRONGTYPE" in bad.reason
    assert [list(each.vector) for each in (good, last)] == [vector_of("good"), vector_of("last")]


def test_a_job_whose_key_was_overwritten_is_sent_again(redis_url: str, producer: Producer) -> None:
    hurt: list[str] = []

    def work(connection: Redis, job_id: str, text: str) -> None:
        if text == "bad" and not hurt:
            hurt.append(job_id)
            connection.set(jobs.job_key(job_id), "x")
        else:
            end(connection, job_id, type=1, return_value=encoded(embedding_of([text])))

    assert [list(each.vector) for each in outcomes_of(producer, redis_url, work)] == [
        vector_of(text) for text in ("good", "bad", "last")
    ]


def test_registries_of_another_type_end_no_run(connection: Redis, redis_url: str, producer: Producer) -> None:
    connection.set("rq:finished:embedding-bulk", "x")
    connection.set("rq:failed:embedding-bulk", "x")

    def work(connection: Redis, job_id: str, text: str) -> None:
        end(connection, job_id, type=1, return_value=encoded(embedding_of([text])))

    assert all(isinstance(each, EmbeddedDocument) for each in outcomes_of(producer, redis_url, work))
    assert connection.keys("rq:job:*") == connection.keys("rq:results:*") == []


def test_a_queue_of_another_type_ends_a_run_at_once(connection: Redis, producer: Producer) -> None:
    connection.set("rq:queue:embedding-bulk", "x")
    with pytest.raises(ServerDataError, match="WRONGTYPE"):
        list(embed_documents(producer, [Document("a", "a")]))
