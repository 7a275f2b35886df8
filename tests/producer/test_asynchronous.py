"""What the producer for asyncio has of its own, against a real server; the test or a stock worker plays the worker.

What it shares with the blocking one: `test_client.py`.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
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
from impetus_producer.asynchronous import line
from impetus_producer.contract import AWAITED_KEY, CANCEL_KEY, WAKE_KEY
from impetus_producer.talks import steps

from .servers import eventually
from .stock_worker import embedding_of, fail, finish, generation_of, vector_of
from .streaming import Writer
from .test_cancelling import start, stop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from .servers import Proxy, Valkey

    MakeValkey = Callable[..., Valkey]

pytestmark = pytest.mark.system


@asynccontextmanager
async def waiting(*awaited: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Future[list[Any]]]:
    """Tasks that wait beside the block, each until it has an answer or an error."""
    tasks = asyncio.gather(*awaited, return_exceptions=True)
    await asyncio.sleep(0)
    yield tasks
    async with asyncio.timeout(60):
        await tasks


async def come_to_pass(look: Callable[[], Any]) -> Any:
    """What `look` returns once it is true, letting the tasks go on."""
    return await asyncio.to_thread(eventually, look)


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


def test_a_thousand_who_wait_take_one_connection_and_a_few_commands_a_second(redis_url: str, connection: Redis) -> None:
    async def main() -> None:
        async with AsyncProducer(redis_url) as producer:
            handles = await asyncio.gather(*(producer.embed("a") for _ in range(1000)))
            async with waiting(*(handle.result(60) for handle in handles)) as ended:
                await come_to_pass(lambda: connection.info("clients")["blocked_clients"] == 1)
                before = commands()
                # Some turns of listening later …
                await come_to_pass(lambda: commands()["xread"] >= before["xread"] + 3)
                # … all were looked at once at most, in one round trip, …
                assert commands()["hget"] - before["hget"] <= 1000
                assert connection.info("clients")["connected_clients"] < 40
                results = embedding_of(["a"])
                for handle in handles[:50]:
                    finish(connection, handle.job_id, results)
                await asyncio.gather(*(handle.result(60) for handle in handles[:50]))
                await producer.close()
            answers = ended.result()
            assert all(answer.embeddings.shape == (1, 8) for answer in answers[:50])
            assert all(isinstance(answer, ImpetusError) for answer in answers[50:])

    def commands() -> dict[str, int]:
        stats: Any = connection.info("commandstats")
        return {name: stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("hget", "xread")}

    asyncio.run(main())


def test_who_comes_while_others_wait_is_heard_at_once(
    redis_url: str, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    from impetus_producer.asynchronous import listener

    # Were it not woken, it would listen for the first alone until the test is over.
    monkeypatch.setattr(listener, "LOOK_S", 14.0)

    async def main() -> None:
        async with AsyncProducer(redis_url) as producer:
            first, second = await producer.embed("a"), await producer.embed("b")
            async with waiting(first.result(60)):
                await come_to_pass(lambda: connection.info("clients")["blocked_clients"] == 1)
                finish(connection, second.job_id, embedding_of(["b"]))
                assert len((await second.result(5)).vectors) == 1
                finish(connection, first.job_id, embedding_of(["a"]))
            assert 0 < int(connection.ttl(connection.keys(f"{WAKE_KEY}*")[0])) <= 60

    asyncio.run(main())


def test_who_may_not_wake_it_is_heard_all_the_same(valkey: MakeValkey) -> None:
    server = valkey()
    server.ask("ACL", "SETUSER", "svc", "on", ">pw", "~*", "+@all", "-xadd", "-@dangerous")

    async def main() -> None:
        async with AsyncProducer(server.url.replace("//", "//svc:pw@")) as producer:
            first, second = await producer.embed("a"), await producer.embed("b")
            with Redis.from_url(server.url) as other:
                async with waiting(first.result(60)):
                    await come_to_pass(lambda: other.info("clients")["blocked_clients"] == 1)
                    finish(other, second.job_id, embedding_of(["b"]))
                    assert len((await second.result(5)).vectors) == 1
                    finish(other, first.job_id, embedding_of(["a"]))

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
                assert await asyncio.wait([task], timeout=10) == ({task}, set())

    asyncio.run(main())


def test_whoever_waits_says_so_and_says_it_again(
    redis_url: str, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "RENEW_S", 0.0)

    async def main() -> None:
        async with AsyncProducer(redis_url) as producer:
            handle = await producer.generate("x", cancel_if_abandoned=True, stream=True)
            key = f"{AWAITED_KEY}{handle.job_id}"
            assert connection.delete(key) == 1
            async with waiting(handle.result(60)):
                await come_to_pass(lambda: connection.delete(key))
                await come_to_pass(lambda: connection.delete(key))
                finish(connection, handle.job_id, generation_of("x"))

    asyncio.run(main())


def test_results_are_waited_for_through_a_restart_which_is_said_once(valkey: MakeValkey) -> None:
    server = valkey("--appendonly", "yes", "--appendfsync", "always")

    async def main() -> list[str]:
        said: list[str] = []
        producer = AsyncProducer(server.url)
        producer.patience.say = said.append
        handles = [await producer.embed("a") for _ in range(40)]
        generation = await producer.generate("x", stream=True)
        with Redis.from_url(server.url) as client:
            writer = Writer(client, generation.job_id).start().write("one ")
            pieces = generation.stream()
            assert await anext(pieces) == "one "
            async with waiting(*(handle.result() for handle in handles), producer.embed("late")) as ended:
                server.kill()
                await come_to_pass(lambda: said)
                server.start()
                for handle in handles:
                    finish(client, handle.job_id, embedding_of(["a"]))
                writer.write("two").finish()
            assert "".join([piece async for piece in pieces]) == "two"
        *results, late = ended.result()
        assert all(list(result.vectors[0]) == vector_of("a") for result in results)
        assert await late.status() == "queued"
        await producer.close()
        return said

    said = asyncio.run(main())
    assert [sentence.partition(":")[0] for sentence in said] == [
        "Waiting up to 300 s for the server",
        "The server answers again.",
    ]


@pytest.mark.parametrize(
    ("trouble", "cure"),
    [
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    ],
    ids=["READONLY", "OOM"],
)
def test_a_server_that_refuses_for_now_is_waited_for(
    valkey: MakeValkey, trouble: tuple[str, ...], cure: tuple[str, ...]
) -> None:
    server = valkey()

    async def main() -> None:
        async with AsyncProducer(server.url) as producer:
            said: list[str] = []
            producer.patience.say = said.append
            server.ask(*trouble)
            async with waiting(producer.embed("a")) as ended:
                await come_to_pass(lambda: said)
                server.ask(*cure)
            assert await ended.result()[0].status() == "queued"

    asyncio.run(main())


def test_a_line_that_a_router_forgot_is_noticed_and_made_anew(
    proxy: Proxy, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "ANSWER_TIMEOUT_S", 1.5)

    async def main() -> None:
        async with AsyncProducer(proxy.url) as producer:
            handle = await producer.embed("a")
            with Redis.from_url(redis_url) as client:
                async with waiting(handle.result()) as ended:
                    await come_to_pass(lambda: client.info("clients")["blocked_clients"] == 1)
                    proxy.forget()
                    finish(client, handle.job_id, embedding_of(["a"]))
            assert list(ended.result()[0].vectors[0]) == vector_of("a")

    asyncio.run(main())


def test_the_time_given_ends_the_wait_for_a_network_that_is_silent(proxy: Proxy) -> None:
    async def main() -> None:
        async with AsyncProducer(proxy.url) as producer:
            handle = await producer.generate("a")
            async with waiting(handle.result(0.3), collected(handle.stream(0.3))) as ended:
                proxy.forget()
            assert all(isinstance(error, ResultTimeoutError) for error in ended.result())

    async def collected(pieces: AsyncIterator[str]) -> list[str]:
        return [piece async for piece in pieces]

    asyncio.run(main())


def test_the_time_given_ends_the_wait_for_a_server_that_is_silent_whatever_is_asked(valkey: MakeValkey) -> None:
    server = valkey()

    async def main() -> None:
        async with AsyncProducer(server.url) as producer:
            handle = await producer.generate("a")
            server.pause()
            try:
                async with waiting(handle.result(0.3), handle.cancel(0.3)) as ended:
                    pass
            finally:
                server.resume()
            assert all(isinstance(error, ResultTimeoutError) for error in ended.result()), ended.result()

    asyncio.run(main())


def test_patience_ends(valkey: MakeValkey) -> None:
    server = valkey()

    async def main() -> None:
        async with AsyncProducer(server.url, patience_s=0.2) as producer:
            handle = await producer.embed("a")
            server.kill()
            for ask in (handle.result, handle.status, handle.cancel, handle.delete, lambda: producer.embed("b")):
                with pytest.raises(NoServerError, match="does not answer"):
                    await ask()

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
