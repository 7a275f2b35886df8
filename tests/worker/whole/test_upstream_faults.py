"""An upstream server that breaks, falls silent or says too much, through a real worker: each job has its own fault."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from rq import Retry

from impetus_producer import JobCancelledError, JobFailedError, Producer
from impetus_producer.contract import GENERATE_FUNCTION, STREAM_KEY
from tests.backends.scripted_server import LIMIT_S, Asked, ScriptedServer
from tests.patience import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from impetus_producer import GenerationHandle

    from ..conftest import Fleet, RunningWorker

pytestmark = pytest.mark.system
MANY = 16


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


def start(fleet: Fleet, server: ScriptedServer) -> RunningWorker:
    return fleet.start(
        "--generation-backend", "openai", "--upstream", server.url, "--max-concurrent-generations", str(MANY),
        roles="generation",
    )  # fmt: skip


def ask(producer: Producer, word: str, **fields: Any) -> GenerationHandle:
    return producer.generate(messages=[{"role": "user", "content": word}], stream=True, **fields)


def word_of(asked: Asked) -> str:
    return str(asked.body["messages"][0]["content"])


def test_a_server_that_dies_in_the_middle_of_many_streams_is_each_ones_own_fault_and_nothing_is_doubled(
    fleet: Fleet, server: ScriptedServer
) -> None:
    together, tries = threading.Barrier(MANY), dict[str, int]()

    def script(asked: Asked) -> None:
        word = word_of(asked)
        tries[word] = tries.get(word, 0) + 1
        asked.head()
        for piece in (word, " is"):
            asked.delta(content=piece)
        if tries[word] == 1:
            together.wait(LIMIT_S)
            return
        asked.delta(content=" said", finish_reason="stop")

    server.script = script
    worker = start(fleet, server)
    producer = Producer(fleet.url)
    handles = {f"w{at}": ask(producer, f"w{at}") for at in range(MANY // 2)}
    bodies = {f"r{at}": {"messages": [{"role": "user", "content": f"r{at}"}]} for at in range(MANY // 2)}
    queue = fleet.queue("generation")
    retried = {word: queue.enqueue(GENERATE_FUNCTION, body, retry=Retry(max=1)) for word, body in bodies.items()}
    for handle in handles.values():
        with pytest.raises(JobFailedError, match=r"the upstream ended its answer before it was whole$"):
            "".join(handle.stream(LIMIT_S))
    for word, job in retried.items():
        assert fleet.await_status(job, "finished", "failed") == "finished", fleet.reason(job)
        result: Any = fleet.job(job.id).return_value()
        assert result["text"] == f"{word} is said"
    assert "".join(ask(producer, "w0").stream(LIMIT_S)) == "w0 is said"
    assert "Traceback" not in worker.log


def test_cancelling_closes_the_connection_of_a_server_that_is_silent(fleet: Fleet, server: ScriptedServer) -> None:
    server.script = lambda asked: asked.until_closed()
    start(fleet, server)
    producer = Producer(fleet.url)
    handle = ask(producer, "quiet")
    server.next_asked()
    assert handle.cancel()
    assert server.closed.acquire(timeout=LIMIT_S)
    with pytest.raises(JobCancelledError):
        handle.result(LIMIT_S)


def test_what_was_streamed_of_several_answers_is_how_the_cancelled_ones_begin(
    fleet: Fleet, server: ScriptedServer
) -> None:
    def script(asked: Asked) -> None:
        asked.head()
        asked.delta(0, content="ha")
        asked.delta(1, "stop", content="whole")
        asked.until_closed()

    server.script = script
    start(fleet, server)
    handle = ask(Producer(fleet.url), "two", n=2)

    def streamed() -> list[bytes]:
        told: Any = fleet.connection.xrange(STREAM_KEY + handle.job_id)
        return [entry[b"text"] for _, entry in told if entry[b"event"] == b"text"]

    eventually(lambda: streamed() == [b"ha", b"whole"])
    assert handle.cancel()
    with pytest.raises(JobCancelledError) as stopped:
        handle.result(LIMIT_S)
    assert stopped.value.partial is not None
    assert [each.text for each in stopped.value.partial.choices] == ["ha", "whole"]
    assert streamed() == [b"ha", b"whole"]


def test_a_worker_that_is_ended_lets_its_streams_end_and_begins_no_other(fleet: Fleet, server: ScriptedServer) -> None:
    go_on = threading.Event()

    def script(asked: Asked) -> None:
        asked.head()
        asked.delta(content="a")
        assert go_on.wait(LIMIT_S)
        asked.delta(content="b", finish_reason="stop")

    server.script = script
    worker = start(fleet, server)
    producer = Producer(fleet.url)
    handles = [ask(producer, str(at)) for at in range(MANY)]
    streams = [handle.stream(LIMIT_S) for handle in handles]
    assert [next(stream) for stream in streams] == ["a"] * MANY
    worker.process.terminate()
    go_on.set()
    assert ["".join(stream) for stream in streams] == ["b"] * MANY
    assert [handle.result(LIMIT_S).text for handle in handles] == ["ab"] * MANY
    assert worker.process.wait(LIMIT_S) == 0
