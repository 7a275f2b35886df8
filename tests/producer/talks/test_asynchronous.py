"""What the producer for asyncio has of its own, against a real server; the test or a stock worker plays the worker.

What it shares with the blocking one: `test_client.py`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from impetus_producer import (
    AsyncProducer,
    ImpetusError,
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    NoServerError,
    Producer,
    ResultTimeoutError,
    ServerConfigurationError,
    StreamRestartedError,
    UnreadableResultError,
)
from impetus_producer.contract import CANCEL_KEY

from ..stock_worker import embedding_of, fail, finish, generation_of
from .awaiting import come_to_pass, waiting
from .streaming import Writer
from .test_cancelling import start, stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..servers.valkey import Valkey

    MakeValkey = Callable[..., Valkey]

pytestmark = pytest.mark.system


def test_endings_are_the_same_errors_as_in_threads(redis_url: str, connection: Redis) -> None:
    async def main() -> None:
        async with AsyncProducer(redis_url) as own:
            failed, stopped, waits, overwritten, late = [await own.generate("x", stream=True) for _ in range(5)]
            Writer(connection, failed.job_id).start().write("so far").fail("the model failed")
            with pytest.raises(JobFailedError, match=r"^the model failed$") as failure:
                await failed.result(5)
            assert failure.value.partial is not None
            assert failure.value.partial.text == "so far"
            Writer(connection, stopped.job_id).start().write("so ", "far").stop()
            pieces = stopped.stream(5)
            assert await anext(pieces) + await anext(pieces) == "so far"
            with pytest.raises(JobCancelledError, match="was stopped") as stopping:
                await anext(pieces)
            assert stopping.value.partial is not None
            assert await waits.cancel() is True
            with pytest.raises(JobCancelledError):
                await waits.result(5)
            with pytest.raises(ResultTimeoutError, match=r"is queued: no result within 0\.01 s"):
                await late.result(0.01)
            connection.set(f"rq:results:{overwritten.job_id}", "something else")
            async with waiting(late.result(60), overwritten.result(60)) as ended:
                finish(connection, late.job_id, generation_of("late"))
            answer, error = ended.result()
            assert answer.text == "late"
            assert isinstance(error, UnreadableResultError)
            await late.delete()
            with pytest.raises(JobNotFoundError):
                await late.result()

    asyncio.run(main())


def test_a_job_that_runs_is_cancelled_when_its_worker_has_stopped_it(redis_url: str, connection: Redis) -> None:
    producer = Producer(connection=connection)

    async def main() -> None:
        async with AsyncProducer(redis_url) as own:
            handle = await own.generate("x")
            mirror = producer.handle(handle.job_id)
            start(producer, mirror)
            with pytest.raises(ResultTimeoutError, match="told to stop"):
                await handle.cancel(0)
            connection.delete(f"{CANCEL_KEY}{handle.job_id}")
            async with waiting(handle.cancel(60)) as ended:
                await come_to_pass(lambda: connection.exists(f"{CANCEL_KEY}{handle.job_id}"))
                stop(producer, mirror)
            assert ended.result() == [True]

    asyncio.run(main())


def test_pieces_come_as_they_are_made_to_all_who_read(redis_url: str, connection: Redis) -> None:
    async def main() -> None:
        async with AsyncProducer(redis_url) as producer:
            handle = await producer.generate("x", stream=True)
            writer = Writer(connection, handle.job_id).start().write("one ")
            early, late = handle.stream(20), handle.stream(20)
            assert await anext(early) == "one "
            writer.write("two ")
            assert await anext(early) == "two "
            # Who comes late begins with all that is there.
            assert await anext(late) == "one "
            writer.write("three").finish()
            assert "".join([piece async for piece in early]) == "three"
            assert "".join([piece async for piece in late]) == "two three"

    asyncio.run(main())


def test_a_stream_that_was_begun_anew_is_void(redis_url: str, connection: Redis) -> None:
    async def main() -> None:
        async with AsyncProducer(redis_url) as producer:
            handle = await producer.generate("x", stream=True)
            Writer(connection, handle.job_id).start().write("void")
            pieces = handle.stream(20)
            assert await anext(pieces) == "void"
            Writer(connection, handle.job_id, run="run-2").start().write("good").finish()
            with pytest.raises(StreamRestartedError):
                await anext(pieces)
            assert "".join([piece async for piece in handle.stream()]) == "good"

    asyncio.run(main())


def test_who_is_cancelled_leaves_the_job_and_the_others(redis_url: str, connection: Redis) -> None:
    async def main() -> None:
        async with AsyncProducer(redis_url) as producer:
            handle, other = await producer.embed("a"), await producer.embed("b")
            async with waiting(other.result(60)) as ended:
                task = asyncio.create_task(handle.result())
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(task, 0.05)
                assert await handle.status() == "queued"
                finish(connection, other.job_id, embedding_of(["b"]))
            assert ended.result()[0].embeddings.shape == (1, 8)

    asyncio.run(main())


def test_a_task_that_is_cancelled_ends_wherever_it_is(redis_url: str) -> None:
    async def main() -> None:
        async with AsyncProducer(redis_url) as producer:

            async def ask() -> None:
                while True:
                    await producer.enqueue("embedding", "f", {"job": {"input": "a"}})

            for turns in range(1, 150):
                task = asyncio.create_task(ask())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                assert await asyncio.wait([task], timeout=60) == ({task}, set())

    asyncio.run(main())


def test_no_server_and_a_wrong_one_are_found_out_at_the_beginning(valkey: MakeValkey) -> None:
    async def enter(url: str | None) -> None:
        async with AsyncProducer(url):
            pass

    with pytest.raises(NoServerError, match="impetus-worker run"):
        asyncio.run(enter(None))
    with pytest.raises(NoServerError, match="does not answer"):
        asyncio.run(enter("redis://127.0.0.1:1/0"))
    with pytest.raises(ServerConfigurationError, match="cluster"):
        asyncio.run(enter(valkey("--cluster-enabled", "yes").url))


def test_a_closed_producer_lets_nobody_wait(redis_url: str) -> None:
    async def main() -> None:
        producer = AsyncProducer(redis_url)
        handle = await producer.embed("a")
        async with waiting(handle.result()) as ended:
            await producer.close()
        assert isinstance(ended.result()[0], ImpetusError)

    asyncio.run(main())


@pytest.mark.parametrize("kind", [Redis, AsyncRedis])
def test_the_server_of_another_client_is_taken_over(redis_url: str, kind: Any) -> None:
    client = kind.from_url(redis_url, decode_responses=True, max_connections=1)

    async def main() -> str:
        async with AsyncProducer(connection=client) as producer:
            return await (await producer.embed("a")).status()

    assert asyncio.run(main()) == "queued"
    with pytest.raises(ImpetusError, match="redis-py client"):
        AsyncProducer(connection=object())  # type: ignore[arg-type]


def test_a_failed_job_raises_for_each_who_waits(redis_url: str, connection: Redis) -> None:
    async def main() -> None:
        async with AsyncProducer(redis_url) as producer:
            handle = await producer.embed("a")
            async with waiting(handle.result(60), handle.result(60)) as ended:
                fail(connection, handle.job_id, "no")
            assert [str(error) for error in ended.result()] == ["no", "no"]

    asyncio.run(main())
