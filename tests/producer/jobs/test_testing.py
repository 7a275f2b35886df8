"""The fake worker that services test with; and that its steps are those of a real server."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING, Any

import fakeredis
import numpy as np
import pytest

from impetus_producer import (
    AsyncProducer,
    JobCancelledError,
    JobFailedError,
    MissingExtraError,
    Producer,
    ResultTimeoutError,
    embed_documents,
    testing,
)
from impetus_producer.bulk.run import EmbeddedDocument
from impetus_producer.documents import Document
from impetus_producer.enqueueing.jobs import withdrawing
from impetus_producer.servers import lualess
from impetus_producer.testing import FakeWorker, vector_of

from ..talks.test_cancelling import everything, start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis


@pytest.fixture
def fake() -> Iterator[FakeWorker]:
    with FakeWorker() as fake:
        yield fake


class Service:
    """A service that somebody else wrote."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    def search(self, text: str) -> list[float]:
        return list(self._producer.embed([text]).result(timeout_s=60).vectors[0])

    def rivers(self) -> list[str]:
        return self._producer.generate("Name three rivers.").result(timeout_s=60).text.split(", ")


def test_the_example_in_its_docstring_runs() -> None:
    assert testing.__doc__ is not None
    lines = testing.__doc__.splitlines()
    example = "\n".join(line[4:] for line in lines if line.startswith("    ") or not line)
    exec(example, {"Service": Service})


def test_the_same_text_has_the_same_vector_of_length_1_and_another_text_another(fake: FakeWorker) -> None:
    first, second, third = np.asarray(fake.producer.embed(["tea", "coffee", "tea"]).result(60).vectors)
    np.testing.assert_array_equal(first, third)
    np.testing.assert_array_equal(first, np.asarray(vector_of("tea", 32), np.float32))
    assert abs(float(np.dot(first, second))) < 0.9
    assert float(np.linalg.norm(first)) == pytest.approx(1)
    assert np.shape(fake.producer.embed("tea", dimensions=7).result(60).vectors) == (1, 7)


@pytest.mark.parametrize("form", ["base64", "float", "raw"])
def test_vectors_come_in_every_form(fake: FakeWorker, form: Any) -> None:
    result = fake.producer.embed("tea", encoding_format=form).result(60)
    np.testing.assert_allclose(result.vectors, [vector_of("tea", 32)], rtol=1e-6)


def test_many_texts_and_documents_are_embedded(fake: FakeWorker) -> None:
    handles = fake.producer.embed_many((f"text {number}" for number in range(100)), texts_per_job=7)
    assert sum(len(handle.result(60).vectors) for handle in handles) == 100
    outcomes = list(embed_documents(fake.producer, [Document(str(number), "a") for number in range(20)]))
    assert all(isinstance(outcome, EmbeddedDocument) for outcome in outcomes)


def test_prompts_are_answered_as_told_or_else_always_the_same(fake: FakeWorker) -> None:
    fake.answer("hi", "hello there")
    assert fake.producer.generate("hi").result(60).text == "hello there"
    assert fake.producer.generate(messages=[{"role": "user", "content": "hi"}]).result(60).text == "hello there"
    assert fake.producer.generate("who?").result(60).text == "An answer to: who?"
    cut = fake.producer.generate("hi", max_tokens=1).result(60)
    assert (cut.text, cut.finish_reason) == ("hello", "length")
    assert fake.producer.generate("x", response_format={"type": "json_object"}).result(60).text == "{}"


def test_text_is_streamed_in_pieces(fake: FakeWorker) -> None:
    fake.answer("hi", "one two  three\n")
    handle = fake.producer.generate("hi", stream=True)
    handle.result(60)
    assert "".join(handle.stream(60)) == "one two  three\n"
    assert fake.connection.xlen(f"impetus:stream:{handle.job_id}") == 6


def test_the_next_job_fails_as_told_and_the_one_after_it_does_not(fake: FakeWorker) -> None:
    fake.fail_next("model: there is no model 'x' here")
    with pytest.raises(JobFailedError, match=r"^model: there is no model 'x' here$"):
        fake.producer.embed("a").result(60)
    assert len(fake.producer.embed("a").result(60).vectors) == 1


def test_a_job_that_waits_and_one_that_runs_are_cancelled(fake: FakeWorker) -> None:
    with fake.paused():
        waits = fake.producer.embed("a")
        with pytest.raises(ResultTimeoutError):
            waits.result(0.01)
        assert waits.cancel(timeout_s=60) is True
    stalled = fake.stall_next()
    runs = fake.producer.generate("b", stream=True)
    assert stalled.wait(60)
    assert runs.cancel(timeout_s=60) is True
    for handle in (waits, runs):
        with pytest.raises(JobCancelledError):
            handle.result(60)
    assert fake.producer.embed("c").result(60).vectors is not None


def test_jobs_show_what_was_enqueued_also_while_nobody_works(fake: FakeWorker) -> None:
    fake.producer.embed(["a", "b"]).result(60)
    with fake.paused():
        fake.producer.generate("c", temperature=0.5, bulk=True)
        assert [(job.queue, dict(job.request)) for job in fake.jobs] == [
            ("embedding", {"input": ["a", "b"]}),
            ("generation-bulk", {"prompt": "c", "temperature": 0.5}),
        ]


def test_tasks_may_ask_it_too(fake: FakeWorker) -> None:
    async def main() -> None:
        async with AsyncProducer(connection=fake.connection) as producer:
            assert len((await (await producer.embed("tea")).result(60)).vectors[0]) == 32
            fake.answer("Name a river.", "Inn")
            assert "".join([piece async for piece in (await producer.generate("Name a river.")).stream(60)]) == "Inn"
            with fake.paused():
                assert await (await producer.embed("tea")).cancel() is True

    asyncio.run(main())


def test_code_may_make_its_own_producer_and_what_waits_at_the_end_is_left() -> None:
    with FakeWorker() as fake:
        assert Producer(connection=fake.connection).embed("a").result(60).model == "fake-model"
        stalled = fake.stall_next()
        fake.producer.embed("b")
        assert stalled.wait(60)
    assert not [thread for thread in threading.enumerate() if thread.name == "fake-worker"]


def test_without_fakeredis_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fakeredis", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'impetus-batch\[testing\]'"):
        FakeWorker()


@pytest.mark.parametrize("decode_responses", [False, True])
def test_a_fakeredis_client_of_somebody_elses_serves(decode_responses: bool) -> None:
    with fakeredis.FakeRedis(decode_responses=decode_responses) as client:
        handle = Producer(connection=client).embed("a")
        assert handle.status() == "queued"
        assert handle.cancel() is True


@pytest.mark.parametrize("state", ["queued", "started", "finished", "gone"])
def test_steps_in_python_do_what_the_scripts_do(
    connection: Redis, producer: Producer, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr("impetus_producer.enqueueing.jobs.uuid4", lambda: type("Id", (), {"hex": "same"}))

    def act(producer: Producer) -> tuple[Any, dict[str, Any]]:
        connection.flushall()
        handle = producer.embed("a")
        producer.enqueue("embedding", "jobs.embed", {"same": {"input": "b"}, "other": {"input": "c"}})
        if state == "started":
            start(producer, handle)
        elif state == "finished":
            connection.hset("rq:job:same", "status", "finished")
        elif state == "gone":
            connection.delete("rq:job:same")
        try:
            answer: Any = handle.cancel(timeout_s=0)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the same
            answer = repr(error)
        return answer, everything(connection)

    by_script = act(producer)
    lualess.teach(producer.connection)
    assert act(producer) == by_script


def test_jobs_are_withdrawn_in_python_as_by_the_script(
    connection: Redis, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impetus_producer.enqueueing.jobs.TIME_FORMAT", "a time")

    def act(producer: Producer) -> tuple[list[str], Any]:
        connection.flushall()
        producer.enqueue("embedding", "jobs.embed", {each: {"input": each} for each in ("a", "b", "taken")})
        connection.lrem("rq:queue:embedding", 1, "taken")  # by a worker
        return withdrawing(["a", "taken", "gone"], "embedding").put_to(producer.connection), everything(connection)

    by_script = act(producer)
    assert by_script[0] == ["a"]
    lualess.teach(producer.connection)
    assert act(producer) == by_script
