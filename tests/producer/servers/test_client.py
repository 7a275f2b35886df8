"""The producer and its handles, blocking and for asyncio, against a real server."""

from __future__ import annotations

import threading
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from redis import Redis
from rq import Queue
from rq.job import Job, JobStatus
from rq.results import Result
from rq.serializers import JSONSerializer

from impetus_producer import (
    GenerationResult,
    ImpetusError,
    InvalidRequestError,
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    NoServerError,
    Producer,
    ResultTimeoutError,
    ServerConfigurationError,
)

from ..stock_worker import StockWorker, embedding_of, fail, finish, vector_of
from ..talks.in_tasks import producer_in_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(params=["in threads", "in tasks"])
def producer(request: pytest.FixtureRequest, redis_url: str, connection: Redis) -> Iterator[Any]:
    """Either producer; what is in Redis is looked at by `connection`."""
    if request.param == "in threads":
        yield Producer(connection=connection)
        return
    with producer_in_tasks(redis_url) as made:
        yield made


def test_vectors_come_back_in_the_order_of_the_texts(producer: Producer, worker: StockWorker) -> None:
    result = producer.embed(["b", "a", "b"]).result(timeout_s=10)
    np.testing.assert_array_equal(result.vectors, [vector_of("b"), vector_of("a"), vector_of("b")])
    assert result.model == "stock-model"


def test_a_prompt_is_answered_and_a_conversation_too(producer: Producer, worker: StockWorker) -> None:
    assert producer.generate("hello").result(10).text == "hello"
    answer = producer.generate(messages=[{"role": "user", "content": "hi"}], stop="x", seed=3).result(10)
    assert isinstance(answer, GenerationResult)
    assert answer.text == "hi"


def test_a_result_that_does_not_come_in_time_is_a_timeout_and_can_be_asked_for_again(
    producer: Producer, connection: Redis
) -> None:
    handle = producer.embed("a")
    with pytest.raises(ResultTimeoutError, match=r"is queued: no result within 0\.01 s"):
        handle.result(timeout_s=0.01)
    with pytest.raises(TimeoutError):
        handle.result(timeout_s=0)
    finish(connection, handle.job_id, embedding_of(["a"]))
    assert np.shape(handle.result(timeout_s=0).vectors) == (1, 8)


def test_a_waiting_caller_gets_the_result_when_it_comes(producer: Producer, redis_url: str) -> None:
    handle = producer.embed("a")

    def work() -> None:
        with Redis.from_url(redis_url) as other:
            finish(other, handle.job_id, embedding_of(["a"]))

    thread = threading.Thread(target=work)
    thread.start()
    assert len(handle.result().vectors) == 1
    thread.join()
    assert handle.status() == "finished"


def test_a_failed_job_raises_the_workers_sentence_and_its_type(producer: Producer, connection: Redis) -> None:
    handle = producer.embed("a")
    fail(connection, handle.job_id, "model: there is no model 'x' here")
    with pytest.raises(JobFailedError, match=r"^model: there is no model 'x' here$") as caught:
        handle.result(timeout_s=5)
    assert (caught.value.reason, caught.value.job_id) == ("RequestError", handle.job_id)
    assert handle.status() == "failed"


def test_a_queued_job_can_be_cancelled_once(producer: Producer, connection: Redis) -> None:
    handle = producer.embed("a")
    assert handle.cancel() is True
    assert handle.cancel() is False
    assert handle.status() == "canceled"
    assert Queue("embedding", connection=connection, serializer=JSONSerializer).job_ids == []
    with pytest.raises(JobCancelledError):
        handle.result(timeout_s=5)


def test_a_finished_job_cannot_be_cancelled(producer: Producer, connection: Redis) -> None:
    handle = producer.embed("a")
    finish(connection, handle.job_id, embedding_of(["a"]))
    assert handle.cancel() is False


def test_a_result_that_will_be_retried_is_not_the_last_word(producer: Producer, connection: Redis) -> None:
    handle = producer.embed("a")
    job = Job.fetch(handle.job_id, connection, serializer=JSONSerializer)
    Result.create(job, Result.Type.RETRIED, ttl=60)
    with pytest.raises(ResultTimeoutError):
        handle.result(timeout_s=0.01)
    finish(connection, handle.job_id, embedding_of(["a"]))
    assert len(handle.result(timeout_s=5).vectors) == 1


def test_a_result_whose_time_ran_out_is_not_waited_for(producer: Producer, connection: Redis) -> None:
    handle = producer.embed("a")
    Job.fetch(handle.job_id, connection, serializer=JSONSerializer).set_status(JobStatus.FINISHED)
    with pytest.raises(JobNotFoundError, match="its time to live ran out"):
        handle.result(timeout_s=0.01)
    handle.delete()
    with pytest.raises(JobNotFoundError, match="there is no job"):
        handle.result(timeout_s=0.01)


def test_a_handle_is_made_again_from_its_id(producer: Producer, worker: StockWorker) -> None:
    generation, embedding = producer.generate("hello"), producer.embed("a")
    assert isinstance(producer.handle(generation.job_id).result(10), GenerationResult)
    assert producer.handle(embedding.job_id).result(10).model == "stock-model"
    with pytest.raises(JobNotFoundError):
        producer.handle("nobody")


def test_what_a_worker_would_refuse_is_refused_at_once_and_enqueues_nothing(
    producer: Producer, connection: Redis
) -> None:
    for wrong in ([], [""] * 3000, "\ud800", "x" * 10_000_001, [3]):
        with pytest.raises(InvalidRequestError, match=r"^input"):
            producer.embed(wrong)  # type: ignore[arg-type]
    for both in ({"prompt_name": "query", "prompt": ""}, {"input_type": "query", "prompt_name": "query"}):
        first, second = both
        with pytest.raises(InvalidRequestError, match=rf"^{second}: .* so does '{first}': give one of them"):
            producer.embed("x", **both)  # type: ignore[arg-type]
    for prompt in ("\ud800", "x" * 10_001, 3):
        with pytest.raises(InvalidRequestError, match=r"^prompt: the prompt [^\n]+$"):
            producer.embed("x", prompt=prompt)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="either 'prompt' or 'messages'"):
        producer.generate()
    assert connection.keys() == []


def test_many_texts_become_jobs_in_their_order(producer: Producer, worker: StockWorker) -> None:
    texts = [f"text {number}" for number in range(1000)]
    rows = [
        row
        for handle in producer.embed_many(texts, texts_per_job=7, max_backlog_jobs=16)
        for row in handle.result(10).vectors
    ]
    np.testing.assert_array_equal(rows, [vector_of(text) for text in texts])


def test_an_endless_stream_of_texts_keeps_the_backlog_bounded(producer: Producer, connection: Redis) -> None:
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "x"

    queue = Queue("embedding-bulk", connection=connection, serializer=JSONSerializer)
    handles = producer.embed_many(texts(), texts_per_job=2, max_backlog_jobs=8)
    assert len(list(islice(handles, 8))) == 8
    assert len(queue) <= 16
    assert read <= 33


def test_no_server_is_one_sentence_that_says_what_to_do() -> None:
    with pytest.raises(NoServerError, match="impetus-worker run"):
        Producer()
    with pytest.raises(NoServerError, match="does not answer"):
        Producer("redis://127.0.0.1:1/0")
    with pytest.raises(NoServerError, match="no Redis URL"):
        Producer("http://127.0.0.1")


def test_all_that_is_offered_is_there() -> None:
    import impetus_producer

    assert all(getattr(impetus_producer, name) for name in impetus_producer.__all__)
    assert issubclass(ServerConfigurationError, ImpetusError)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        impetus_producer.nothing  # noqa: B018


class OwnError(Exception):
    pass


def test_where_texts_end_badly_the_handles_of_all_before_are_yielded_first(
    producer: Producer, connection: Redis
) -> None:
    def breaks() -> Iterator[str]:
        yield from map(str, range(96))
        raise OwnError("the caller's own")

    bad: list[tuple[Any, type[Exception], str]] = [
        (breaks(), OwnError, "the caller's own"),
        ([*map(str, range(96)), None], InvalidRequestError, r"texts: item 96 is a NoneType, not a string"),
        ([*map(str, range(96)), b"x"], InvalidRequestError, r"texts: item 96 is a bytes"),
        ([*map(str, range(96)), "\ud800"], InvalidRequestError, r"texts: item 96: the text holds half a surrogate"),
    ]
    for texts, error, sentence in bad:
        handles = producer.embed_many(texts, texts_per_job=2)
        ids = [handle.job_id for handle in islice(handles, 48)]
        with pytest.raises(error, match=sentence) as raised:
            next(handles)
        assert raised.value.__notes__ == ["The input ended with this after 96 items."]
        queue = Queue("embedding-bulk", connection=connection, serializer=JSONSerializer)
        assert queue.job_ids == ids
        queue.empty()


def test_half_a_surrogate_pair_is_refused_by_name_wherever_it_is(producer: Producer, connection: Redis) -> None:
    calls: list[tuple[str, Callable[[], object]]] = [
        ("model", lambda: producer.embed("a", model="\ud800")),
        ("model", lambda: producer.rerank("a", ["b"], model="\udfff")),
        ("model", lambda: producer.generate("a", model="\ud800")),
    ]
    for field, call in calls:
        with pytest.raises(InvalidRequestError, match=f"^{field}: .*half a surrogate pair, which is no text") as raised:
            call()
        assert raised.value.field == field
    assert connection.keys() == []


def nested(levels: int) -> dict[str, Any]:
    return {"a": nested(levels - 1)} if levels else {}


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("chat_template_kwargs", {"a": float("inf")}, "is no JSON: Out of range float values"),
        ("chat_template_kwargs", {"a": {1}}, "is no JSON: Object of type set"),
        ("chat_template_kwargs", {"a": 10**5000}, "is no JSON: Exceeds the limit"),
        ("chat_template_kwargs", nested(190), "is nested more than 190 levels deep"),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": nested(900)}}, "is nested"),
        ("tools", [{"type": "function", "function": {"name": "x", "parameters": nested(900)}}], "is nested more than"),
    ],
)
def test_what_no_worker_reads_is_refused_by_name(
    producer: Producer, connection: Redis, field: str, value: Any, problem: str
) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{field}: {problem}") as raised:
        producer.generate(messages=[{"role": "user", "content": "x"}], **{field: value})
    assert raised.value.field == field
    assert connection.keys() == []


def test_what_is_no_list_of_texts_and_numbers_that_no_run_could_have_are_refused_at_once(
    producer: Producer, connection: Redis
) -> None:
    calls: list[tuple[Any, dict[str, Any], str]] = [
        ("one text", {}, "an iterable of strings, not a str: give a list"),
        (b"bytes", {}, "not a bytes"),
        (None, {}, "not a NoneType"),
        (["x"], {"texts_per_job": 0}, r"texts_per_job must be a whole number from 1 to 2,048, not 0"),
        (["x"], {"texts_per_job": 3000}, "texts_per_job"),
        (["x"], {"texts_per_job": None}, "texts_per_job"),
        (["x"], {"max_backlog_jobs": 0}, "max_backlog_jobs must be a whole number at least 1, not 0"),
        (["x"], {"dimensions": 0}, "dimensions"),
    ]
    for texts, options, sentence in calls:
        with pytest.raises(InvalidRequestError, match=sentence):
            producer.embed_many(texts, **options)
    assert list(producer.embed_many([])) == []
    assert connection.keys() == []


def test_long_texts_are_bounded_by_their_length_and_not_by_their_number(producer: Producer) -> None:
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "x" * 2_000_000

    handles = producer.embed_many(texts())
    for _ in range(5):
        next(handles)
    # 32 million characters, and the quarter of it that goes in one round trip.
    assert read <= 21
