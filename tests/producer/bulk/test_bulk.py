"""Many documents through a real queue: order, isolation, and what stays in Redis."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from impetus_producer import InvalidRequestError, JobFailedError, NoServerError, Producer
from impetus_producer.bulk.run import EmbeddedDocument, embed_documents
from impetus_producer.documents import Document, FailedDocument

from ..stock_worker import RefusedError, embedding_of, honest_work, vector_of, working

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..stock_worker import StockWorker


def documents(count: int, text: str = "text {}") -> list[Document]:
    return [Document(f"id-{number}", text.format(number)) for number in range(count)]


def leftovers(connection: Redis) -> set[Any]:
    return set(connection.keys()) - {b"rq:queues"}


def test_vectors_come_in_the_order_of_the_documents_and_redis_is_left_empty(
    producer: Producer, worker: StockWorker
) -> None:
    outcomes = list(embed_documents(producer, documents(1001), texts_per_job=8, max_backlog_jobs=16))
    assert [outcome.id for outcome in outcomes] == [f"id-{number}" for number in range(1001)]
    assert all(isinstance(outcome, EmbeddedDocument) for outcome in outcomes)
    vectors = [outcome.vector for outcome in outcomes if isinstance(outcome, EmbeddedDocument)]
    np.testing.assert_array_equal(vectors, [vector_of(f"text {number}") for number in range(1001)])
    assert leftovers(producer.connection) == set()


def test_no_documents_make_no_jobs(producer: Producer) -> None:
    assert list(embed_documents(producer, [])) == []
    assert leftovers(producer.connection) == set()


def test_an_endless_stream_of_documents_is_read_no_further_than_the_window(
    producer: Producer, worker: StockWorker
) -> None:
    read = 0

    def stream() -> Iterator[Document]:
        nonlocal read
        while True:
            read += 1
            yield Document(str(read), "x")

    outcomes = embed_documents(producer, stream(), texts_per_job=4, max_backlog_jobs=8)
    for number in range(1, 401):
        assert next(outcomes).id == str(number)
        # The window, and the one document that tells a part is full.
        assert read <= number + 4 * 8 + 1
    outcomes.close()  # type: ignore[attr-defined]
    assert worker.most_queued <= 8


def test_bad_documents_fail_alone_wherever_they_come_from(producer: Producer, worker: StockWorker) -> None:
    mixed: list[Document | FailedDocument] = list(documents(40))
    mixed[3] = FailedDocument("unread", "line 4: this is not UTF-8")
    mixed[5] = Document("half", "half a pair \ud800")
    mixed[6] = Document("long", "x" * 10_000_001)
    mixed[17] = Document("refused", "bad text")
    outcomes = list(embed_documents(producer, mixed, texts_per_job=10))
    assert [outcome.id for outcome in outcomes] == [document.id for document in mixed]
    assert [outcome for outcome in outcomes if isinstance(outcome, FailedDocument)] == [
        FailedDocument("unread", "line 4: this is not UTF-8"),
        FailedDocument("half", "the text holds half a surrogate pair, which is no text"),
        FailedDocument("long", "the text is longer than 10,000,000 bytes of UTF-8"),
        FailedDocument("refused", "the text is bad"),
    ]
    assert leftovers(producer.connection) == set()


def test_options_that_no_job_could_have_end_the_run_at_once(producer: Producer, redis_url: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^dimensions"):
        embed_documents(producer, documents(3), dimensions=0)

    def refuse(function: str, request: dict[str, Any]) -> Any:
        raise RefusedError(f"model: this worker does not serve {request['model']!r}")

    with working(redis_url, refuse), pytest.raises(JobFailedError, match=r"^model: this worker does not serve 'other'"):
        list(embed_documents(producer, documents(100), texts_per_job=4, model="other"))
    assert len(Queue("embedding-bulk", connection=producer.connection, serializer=JSONSerializer)) == 0


def test_every_option_reaches_the_worker(producer: Producer, redis_url: str) -> None:
    requests = []

    def note(function: str, request: dict[str, Any]) -> Any:
        requests.append(request)
        return embedding_of(request["input"])

    with working(redis_url, note):
        list(embed_documents(producer, documents(1), model="m", dimensions=4, input_type="query", truncate=False))
        list(embed_documents(producer, documents(1), prompt_name="query"))
        list(embed_documents(producer, documents(1), prompt=""))
        next(iter(producer.embed_many(["text 0"], prompt="of: "))).result(20)
    options = {"model": "m", "dimensions": 4, "input_type": "query", "truncate": False, "encoding_format": "raw"}
    prompts: list[dict[str, Any]] = [{"prompt_name": "query"}, {"prompt": ""}, {"prompt": "of: "}]
    asked = [options, *({"encoding_format": "raw"} | prompt for prompt in prompts)]
    assert requests == [{"input": ["text 0"]} | each for each in asked]


def test_a_worker_that_sends_too_few_vectors_or_numbers_not_finite_fails_documents_not_the_run(
    producer: Producer, redis_url: str
) -> None:
    def sloppy(function: str, request: dict[str, Any]) -> Any:
        texts = request["input"]
        if len(texts) > 1:
            return embedding_of(texts[1:])
        if texts == ["text 1"]:
            rows = {"dtype": "float32", "shape": [1, 2], "encoding": "float", "data": [[1.0, float("nan")]]}
            return embedding_of(texts) | {"embeddings": rows}
        return {"vectors": "none"} if texts == ["text 2"] else embedding_of(texts)

    with working(redis_url, sloppy):
        outcomes = list(embed_documents(producer, documents(4), texts_per_job=4))
    assert [type(outcome) for outcome in outcomes] == [
        EmbeddedDocument,
        FailedDocument,
        FailedDocument,
        EmbeddedDocument,
    ]
    assert "not finite" in outcomes[1].reason  # type: ignore[union-attr]
    assert "not what the contract says" in outcomes[2].reason  # type: ignore[union-attr]


def test_a_run_given_up_asks_a_server_that_hangs_no_longer_than_who_gave_it_up_waits(
    valkey: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impetus_producer.servers.connections.FAREWELL_TIMEOUT_S", 0.01)
    server = valkey()
    producer = Producer(server.url)

    def patiently(*arguments: Any) -> None:
        raise AssertionError

    def interrupt() -> None:
        server.pause()
        monkeypatch.setattr(producer.connection.connection_pool, "get_connection", patiently)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(embed_documents(producer, documents(100), texts_per_job=4, while_waiting=interrupt))


def test_a_run_given_up_withdraws_the_jobs_that_wait(producer: Producer, redis_url: str) -> None:
    at_work, go_on = threading.Event(), threading.Event()

    def slow(function: str, request: dict[str, Any]) -> Any:
        at_work.set()
        assert go_on.wait(60)
        return honest_work(function, request)

    def interrupt() -> None:
        if at_work.is_set():
            raise KeyboardInterrupt

    with working(redis_url, slow) as worker:
        with pytest.raises(KeyboardInterrupt):
            list(embed_documents(producer, documents(100), texts_per_job=4, while_waiting=interrupt))
        queued = Queue("embedding-bulk", connection=producer.connection, serializer=JSONSerializer).job_ids
        running = producer.connection.keys("rq:job:*")
        go_on.set()
    assert queued == []
    assert len(running) == 1
    assert worker.jobs_done == 1


def test_jobs_that_others_cancel_or_redis_loses_do_not_hang_the_run(producer: Producer, redis_url: str) -> None:
    connection = producer.connection
    queue = Queue("embedding-bulk", connection=connection, serializer=JSONSerializer)
    meddled = threading.Event()

    def meddle() -> None:
        if meddled.is_set():
            return
        meddled.set()
        cancelled, lost, *_ = queue.job_ids
        Job.fetch(cancelled, connection, serializer=JSONSerializer).cancel()
        connection.lrem("rq:queue:embedding-bulk", 1, lost)
        connection.delete(f"rq:job:{lost}")
        worker.start()

    worker = working_later(redis_url)
    outcomes = list(embed_documents(producer, documents(6), texts_per_job=2, while_waiting=meddle))
    worker.stop()
    assert outcomes[:2] == [
        FailedDocument(f"id-{number}", "its job was cancelled", retryable=True) for number in range(2)
    ]
    assert all(isinstance(outcome, EmbeddedDocument) for outcome in outcomes[2:])


def working_later(redis_url: str) -> StockWorker:
    from ..stock_worker import StockWorker

    return StockWorker(redis_url, honest_work)


def test_the_server_going_away_is_one_sentence(redis_url: str) -> None:
    producer = Producer(redis_url, patience_s=0)

    def pull_the_plug() -> None:
        producer.connection.close()
        producer.connection = Redis(port=1, retry=Retry(NoBackoff(), 0))

    with pytest.raises(NoServerError, match="does not answer"):
        list(embed_documents(producer, documents(3), while_waiting=pull_the_plug))
    producer.connection.close()


def test_when_the_documents_end_badly_what_was_read_is_yielded_first(producer: Producer, worker: StockWorker) -> None:
    def breaks() -> Iterator[Document]:
        yield from documents(10)
        raise OSError("the caller's own")

    for source, error in ((breaks(), OSError), ([*documents(10), None, *documents(3)], InvalidRequestError)):
        outcomes = embed_documents(producer, source, texts_per_job=4)  # type: ignore[arg-type]
        assert [next(outcomes).id for _ in range(10)] == [f"id-{number}" for number in range(10)]
        with pytest.raises(error) as raised:
            next(outcomes)
        assert raised.value.__notes__ == ["The input ended with this after 10 items."]
    assert leftovers(producer.connection) == set()


def test_equal_texts_of_a_window_are_sent_once(producer: Producer, redis_url: str) -> None:
    sent: list[str] = []

    def note(function: str, request: dict[str, Any]) -> Any:
        sent.extend(request["input"])
        return embedding_of(request["input"])

    with working(redis_url, note):
        outcomes = list(embed_documents(producer, [Document(number, f"text {number % 3}") for number in range(30)]))
    assert [outcome.id for outcome in outcomes] == list(range(30))
    assert sent == ["text 0", "text 1", "text 2"]


def test_long_documents_are_bounded_by_their_length(producer: Producer) -> None:
    read = 0

    def stream() -> Iterator[Document]:
        nonlocal read
        while True:
            read += 1
            yield Document(read, f"{read}" * 1_000_000)

    def give_up() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(embed_documents(producer, stream(), while_waiting=give_up))
    assert read <= 40
    assert leftovers(producer.connection) == set()
