"""Stores of answers by one interface: a file, and a server that forgets."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from redis import Redis

from impetus_producer import ImpetusError, InvalidRequestError, RedisStore
from impetus_producer.bulk.kept.store import Answer, AnswerStore, Store
from impetus_producer.bulk.kept.stores import open_store
from impetus_producer.cli.main import cli
from tests.paths import ROOT

from ..servers.valkey import Valkey
from ..stock_worker import honest_work, working

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def answers(start: int, end: int, fingerprint: str = "f", size: int = 1536) -> list[tuple[bytes, Answer]]:
    return [(key(number), Answer(bytes([number % 256]) * size, "model", fingerprint)) for number in range(start, end)]


@pytest.fixture(params=["file", "server"])
def store(request: pytest.FixtureRequest, folder: Path, redis_url: str) -> Iterator[AnswerStore]:
    with open_store("store.sqlite" if request.param == "file" else redis_url) as store:
        yield store


def test_answers_are_found_by_their_key_and_who_gave_them(store: AnswerStore) -> None:
    assert not store
    assert store.find([key(1)], ["f"]) == {}
    store.keep(answers(0, 1200))
    store.keep(answers(0, 3, "g", 8))
    store.keep(answers(0, 3))
    assert store
    assert len(store) == 1203
    keys = [key(number) for number in (0, 7, 1199, 1200)]
    assert store.find(keys, ["f"]) == {
        key(number): answer for number in (0, 7, 1199) for _, answer in answers(number, number + 1)
    }
    assert store.find([key(0), key(5)], ["g"]) == {key(0): Answer(bytes(8), "model", "g")}
    assert store.find([key(0)], []) == {}
    assert store.find([key(5)], ["g", "f"])[key(5)].fingerprint == "f"


def test_after_a_full_disk_answers_are_still_found_under_who_gave_them(folder: Path) -> None:
    with closing(Store("store.sqlite")) as store:
        store.keep(answers(0, 1))
        (pages,) = store._database.execute("PRAGMA page_count").fetchone()
        store._database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(ImpetusError, match="make room"):
            store.keep(answers(0, 100, "g"))
        store._database.execute(f"PRAGMA max_page_count = {pages * 100}")
        store.keep(answers(0, 1, "h"))
        store.keep(answers(1, 2, "g"))
        assert store.find([key(0), key(1)], ["g"]) == dict(answers(1, 2, "g"))
        assert store.find([key(0), key(1)], ["h"]) == dict(answers(0, 1, "h"))


def test_a_server_holds_no_more_bytes_than_it_may_and_the_newest_stay(redis_url: str) -> None:
    with RedisStore(f"{redis_url}?max_bytes=500000") as store, Redis.from_url(redis_url) as connection:
        before = memory_of(connection)
        for start in range(0, 3000, 100):
            store.keep(answers(start, start + 100))
        assert int(connection.get("impetus:answers-bytes") or 0) <= 500_000
        assert memory_of(connection) - before < 700_000
        assert 200 < len(store) < 350
        assert len(store.find([key(number) for number in range(2900, 3000)], ["f"])) == 100
        assert store.find([key(0)], ["f"]) == {}
        assert len(connection.keys("impetus:answers:*")) == len(store)
        # One that is larger than all of it is not kept, and others are not kept for it.
        store.keep(answers(4000, 4001, size=600_000))
        assert len(store) == 0


def test_a_server_forgets_after_a_while(redis_url: str) -> None:
    with RedisStore(f"{redis_url}?ttl_s=100&max_bytes=9000000") as store, Redis.from_url(redis_url) as connection:
        store.keep(answers(0, 5))
        for name in connection.keys("impetus:answers*"):
            assert 0 < connection.ttl(name) <= 100
        # As if an hour had passed.
        for member in connection.zrange("impetus:answers", 0, -1):
            connection.zincrby("impetus:answers", -3600, member)
        store.keep(answers(5, 6))
        assert len(store) == 1
        assert store.find([key(0)], ["f"]) == {}
        assert len(connection.keys("impetus:answers:*")) == 1


def test_a_server_that_is_full_keeps_nothing_and_that_is_no_error(folder: Path) -> None:
    server = Valkey(folder, "--maxmemory", "2mb", "--maxmemory-policy", "noeviction")
    try:
        with RedisStore(server.url) as store:
            store.keep(answers(0, 5000))
            assert 0 < len(store) < 5000
    finally:
        server.kill()


def test_a_user_with_the_rights_that_the_docs_state_may_keep_and_find(folder: Path) -> None:
    docs = (ROOT / "docs" / "bulk.md").read_text()
    (rights,) = re.findall(r"`(~impetus:answers\* [^`]*)`", docs)
    server = Valkey(folder)
    server.ask("ACL", "SETUSER", "keeper", "reset", "on", ">p", *rights.split())
    try:
        with RedisStore(server.url.replace("redis://", "redis://keeper:p@")) as store:
            store.keep(answers(0, 3))
            assert len(store.find([key(1)], ["f"])) == len(store) - 2 == 1
    finally:
        server.kill()


def test_options_that_are_none_are_refused(redis_url: str) -> None:
    for option in ("max_bytes=0", "max_bytes=1e9", "ttl_s=-1", "ttl_s=soon"):
        with pytest.raises(InvalidRequestError, match="whole number above 0"):
            RedisStore(f"{redis_url}?{option}")


def test_a_run_finds_in_a_server_what_another_computed_and_goes_on_though_it_forgot(
    folder: Path, redis_url: str
) -> None:
    lines = [f"text {number}" for number in range(150)]
    (folder / "in.txt").write_text("\n".join(lines) + "\n")
    computed: list[str] = []

    def work(function: str, request: dict[str, Any]) -> Any:
        computed.extend(text for text in request["input"] if text.startswith("text"))
        return honest_work(function, request)

    def embed(output: str, store: str) -> Any:
        return CliRunner().invoke(cli, ["embed", "in.txt", "-o", output, "--redis-url", redis_url, "--store", store])

    with working(redis_url, work):
        assert embed("a.jsonl", redis_url).exit_code == 0
        assert ", 150 known before" in embed("b.jsonl", redis_url).stderr
        assert sorted(computed) == sorted(lines)
        # Nothing stays in such a store, but what a run has done is kept beside its output too.
        assert embed("c.jsonl", f"{redis_url}?max_bytes=1").exit_code == 0
        assert (folder / "a.jsonl").read_bytes() == (folder / "c.jsonl").read_bytes()


def memory_of(connection: Redis) -> int:
    memory: Any = connection.info("memory")
    return int(memory["used_memory_dataset"])
