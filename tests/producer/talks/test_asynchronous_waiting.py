"""How the producer for asyncio waits: for results, and for servers that are away, silent or wrong."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from impetus_producer import (
    AsyncProducer,
    ImpetusError,
    NoServerError,
    ResultTimeoutError,
)
from impetus_producer.asynchronous import line, listener
from impetus_producer.contract import AWAITED_KEY, WAKE_KEY
from impetus_producer.talks import steps

from ..stock_worker import embedding_of, finish, generation_of, vector_of
from .awaiting import come_to_pass, waiting
from .streaming import Writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ..servers.valkey import Proxy, Valkey

    MakeValkey = Callable[..., Valkey]

pytestmark = pytest.mark.system


def test_a_thousand_who_wait_take_one_connection_and_a_few_commands_a_second(
    redis_url: str, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long some turns take here, none is due a second time.
    monkeypatch.setattr(listener, "_LOOKS_PER_S", 10)

    async def main() -> None:
        of_others = clients()  # those of tests before this one may end when their garbage is collected
        async with AsyncProducer(redis_url) as producer:
            handles = await asyncio.gather(*(producer.embed("a") for _ in range(1000)))
            async with waiting(*(handle.result(60) for handle in handles)) as ended:
                await come_to_pass(lambda: connection.info("clients")["blocked_clients"] == 1)
                before = commands()
                # Some turns of listening later …
                await come_to_pass(lambda: commands()["xread"] >= before["xread"] + 3)
                # … all were looked at once at most, in one round trip, …
                assert commands()["hget"] - before["hget"] <= 1000
                assert clients() - of_others < 39
                results = embedding_of(["a"])
                for handle in handles[:50]:
                    finish(connection, handle.job_id, results)
                await asyncio.gather(*(handle.result(60) for handle in handles[:50]))
                await producer.close()
            answers = ended.result()
            assert all(answer.embeddings.shape == (1, 8) for answer in answers[:50])
            assert all(isinstance(answer, ImpetusError) for answer in answers[50:])

    def clients() -> int:
        return int(connection.info("clients")["connected_clients"])

    def commands() -> dict[str, int]:
        stats: Any = connection.info("commandstats")
        return {name: stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("hget", "xread")}

    asyncio.run(main())


def test_who_comes_while_others_wait_is_heard_at_once(
    redis_url: str, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
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
