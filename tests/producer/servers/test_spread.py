"""Several servers as one: each job is at the server that its id names, and a run, a status and a handle know where."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from redis import Redis

from impetus_producer import (
    AsyncSpreadProducer,
    EmbeddingResult,
    InvalidRequestError,
    JobNotFoundError,
    NoServerError,
    Producer,
    ServerError,
    ServerFullError,
    SpreadProducer,
    embed_batch,
)
from impetus_producer.bulk import windows
from impetus_producer.bulk.run import EmbeddedDocument, embed_documents
from impetus_producer.cli.main import cli
from impetus_producer.documents import Document
from impetus_producer.talks import presence
from tests.patience import eventually

from ..batches.requests import answers, embedding, jsonl
from ..stock_worker import honest_work, vector_of, working

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .valkey import Valkey


@pytest.fixture
def other(valkey: Callable[..., Valkey]) -> Valkey:
    return valkey()


@pytest.fixture
def urls(redis_url: str, other: Valkey) -> tuple[str, str]:
    return redis_url, other.url


@pytest.fixture
def spread(urls: tuple[str, str]) -> Iterator[SpreadProducer]:
    with SpreadProducer(urls, patience_s=10) as made:
        yield made


@pytest.fixture
def workers(urls: tuple[str, str]) -> Iterator[None]:
    with working(urls[0]), working(urls[1]):
        yield


def queued(url: str, queue: str = "embedding-bulk") -> int:
    with Redis.from_url(url) as client:
        return int(client.llen(f"rq:queue:{queue}"))


def test_jobs_are_spread_and_whoever_names_the_same_servers_finds_each(
    spread: SpreadProducer, urls: tuple[str, str]
) -> None:
    ids = [spread.embed(str(number)).job_id for number in range(40)]
    assert [queued(url, "embedding") for url in urls] == [20, 20]
    backwards = SpreadProducer([url.replace("redis://", "redis://default@") for url in reversed(urls)])
    for job_id in ids:
        producer = backwards.of(job_id)
        assert producer.handle(job_id).status() == "queued"
        assert backwards.handle(job_id).cancel()


def test_a_job_that_somebody_put_elsewhere_is_found_all_the_same(spread: SpreadProducer, urls: tuple[str, str]) -> None:
    ids = [Producer(urls[0]).embed(str(number)).job_id for number in range(10)]
    assert any(spread.of(job_id) is not spread.servers[0] for job_id in ids)
    assert all(spread.handle(job_id).status() == "queued" for job_id in ids)
    with pytest.raises(JobNotFoundError, match="no-such-job"):
        spread.handle("no-such-job")


def test_two_urls_of_one_server_are_refused(redis_url: str) -> None:
    with pytest.raises(InvalidRequestError, match="each once"):
        SpreadProducer([redis_url, redis_url.replace("redis://", "redis://default@")])


@pytest.mark.usefixtures("workers")
def test_a_run_keeps_its_order_and_leaves_nothing_at_either_server(
    spread: SpreadProducer, urls: tuple[str, str]
) -> None:
    documents = [Document(f"id-{number}", f"text {number % 700}") for number in range(1001)]
    outcomes = list(embed_documents(spread, documents, texts_per_job=8, max_backlog_jobs=16))
    assert [outcome.id for outcome in outcomes] == [document.id for document in documents]
    vectors = [outcome.vector for outcome in outcomes if isinstance(outcome, EmbeddedDocument)]
    np.testing.assert_array_equal(vectors, [vector_of(document.text) for document in documents])
    for url in urls:
        with Redis.from_url(url) as client:
            assert set(client.keys()) == {b"rq:queues"}


@pytest.mark.usefixtures("workers")
def test_many_texts_have_their_handles_in_order_and_a_batch_is_computed_once(spread: SpreadProducer) -> None:
    texts = [f"text {number}" for number in range(500)]
    vectors = [row for handle in spread.embed_many(texts, texts_per_job=4) for row in handle.result(30).vectors]
    np.testing.assert_array_equal(vectors, [vector_of(text) for text in texts])
    np.testing.assert_array_equal(embed_batch(spread, texts), vectors)
    np.testing.assert_array_equal(embed_batch(spread, texts), vectors)

    def broken() -> Iterator[str]:
        yield from texts[:300]
        raise OSError("the input broke off")

    handles = spread.embed_many(broken(), texts_per_job=4)
    for number in range(75):
        np.testing.assert_array_equal(next(handles).result(30).vectors[0], vector_of(texts[4 * number]))
    with pytest.raises(OSError, match="broke off"):
        next(handles)
    with pytest.raises(InvalidRequestError, match="dimensions"):
        spread.embed_many(texts, dimensions=0)


class Computed(Counter[str]):
    """How often workers computed each text."""

    def __call__(self, function: str, request: dict[str, Any]) -> Any:
        self.update(request["input"])
        return honest_work(function, request)


def numbered(count: int) -> list[Document]:
    return [Document(str(number), f"text {number}") for number in range(count)]


def test_a_run_goes_on_where_a_server_is_and_nothing_is_computed_twice(
    spread: SpreadProducer, other: Valkey, urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "GRACE_S", 0.0)
    computed, said, documents = Computed(), list[str](), numbered(64)
    spread.servers[1].patience.say = said.append
    other.kill()
    with working(urls[0], computed):
        outcomes = list(embed_documents(spread, documents, texts_per_job=4))
    assert [outcome.id for outcome in outcomes] == [document.id for document in documents]
    assert all(isinstance(outcome, EmbeddedDocument) for outcome in outcomes)
    assert computed == {document.text: 1 for document in documents}
    assert len(said) == 1
    assert "Doing without a server" in said[0]


def killed_in_the_middle(spread: SpreadProducer, other: Valkey, urls: tuple[str, str], computed: Computed) -> list[Any]:
    """What becomes of a run whose jobs lie at both servers when one is killed, where nobody works so far."""
    documents = numbered(64)

    def kill_once_all_is_sent() -> None:
        if not began.is_set():
            began.set()
            assert queued(urls[1])
            other.kill()
            work.enter_context(working(urls[0], computed))

    began = threading.Event()
    with ExitStack() as work:
        outcomes = list(embed_documents(spread, documents, texts_per_job=4, while_waiting=kill_once_all_is_sent))
    assert [outcome.id for outcome in outcomes] == [document.id for document in documents]
    return outcomes


def test_what_a_server_had_when_it_went_is_made_elsewhere_once_the_others_are_idle(
    spread: SpreadProducer, other: Valkey, urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "GRACE_S", 0.0)
    computed = Computed()
    outcomes = killed_in_the_middle(spread, other, urls, computed)
    assert all(isinstance(outcome, EmbeddedDocument) for outcome in outcomes)
    assert computed == {document.text: 1 for document in numbered(64)}


def test_a_server_that_comes_back_soon_keeps_what_it_had(
    spread: SpreadProducer, urls: tuple[str, str], other: Valkey
) -> None:
    computed, at_the_other = Computed(), Computed()
    with ExitStack() as later:

        def bring_back(sentence: str) -> None:
            if "Doing without" in sentence:
                other.start()
                later.enter_context(working(urls[1], at_the_other))

        spread.servers[1].patience.say = bring_back
        outcomes = killed_in_the_middle(spread, other, urls, computed)
    assert all(isinstance(outcome, EmbeddedDocument) for outcome in outcomes)
    assert computed + at_the_other == {document.text: 1 for document in numbered(64)}
    assert at_the_other


def test_a_server_that_comes_back_late_has_what_was_made_elsewhere_taken_off_its_queue(
    spread: SpreadProducer, valkey: Callable[..., Valkey], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "GRACE_S", 0.0)
    durable = valkey("--appendonly", "yes", "--appendfsync", "always")
    computed, urls = Computed(), (redis_url, durable.url)
    spread = SpreadProducer(urls, patience_s=10)

    def documents() -> Iterator[Document]:
        yield from numbered(64)
        # Read once there is room again: what was sent before is done.
        durable.start()
        eventually(spread.servers[1].is_there)
        yield from (Document(f"later {number}", f"later {number}") for number in range(64))

    def kill_once_all_is_sent() -> None:
        if not began.is_set():
            began.set()
            assert queued(urls[1])
            durable.kill()
            work.enter_context(working(urls[0], computed))
            monkeypatch.setattr(windows.Windows, "_welcome_back", welcome_back_and_work)

    def welcome_back_and_work(self: windows.Windows[Any]) -> None:
        were_away = bool(self._away)
        welcome_back(self)
        if were_away and not self._away:
            work.enter_context(working(urls[1], computed))

    welcome_back = windows.Windows._welcome_back
    began = threading.Event()
    with ExitStack() as work:
        outcomes = list(
            embed_documents(
                spread, documents(), texts_per_job=4, max_backlog_jobs=16, while_waiting=kill_once_all_is_sent
            )
        )
    assert len(outcomes) == 128
    assert set(computed.values()) == {1}
    assert not queued(urls[1])


def test_servers_that_are_all_away_or_full_are_waited_for_until_patience_ends(
    urls: tuple[str, str], other: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "_PAUSE_S", 0.05)
    monkeypatch.setattr(presence, "_EVERY_S", 0.05)
    spread = SpreadProducer(urls, patience_s=0.5)
    with Redis.from_url(urls[0]) as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(ServerFullError):
                list(embed_documents(SpreadProducer([urls[0], f"{urls[0][:-1]}1"], patience_s=0.5), numbered(64)))
            other.kill()
            with pytest.raises(ServerError):
                list(embed_documents(spread, numbered(64), texts_per_job=4))
        finally:
            client.config_set("maxmemory", 0)


def test_a_producer_passes_over_a_server_that_is_away(
    urls: tuple[str, str], other: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "_EVERY_S", 0.0)
    monkeypatch.setattr(presence, "_SPARED", 0.0)
    spread = SpreadProducer(urls, patience_s=10)
    other.kill()
    ids = [spread.embed(str(number)).job_id for number in range(10)]
    ids += [SpreadProducer(urls).generate("made while it is away").job_id]
    assert queued(urls[0], "embedding") == 10
    assert all(spread.of(job_id) is spread.servers[0] for job_id in ids)
    other.start()
    assert {spread.of(spread.embed(str(number)).job_id) for number in range(4)} == set(spread.servers)
    other.kill()
    with pytest.raises(NoServerError, match="does not answer"):
        SpreadProducer([other.url, f"{other.url[:-1]}1"])


@pytest.mark.usefixtures("workers")
def test_the_commands_take_several_servers(folder: Path, urls: tuple[str, str]) -> None:
    (folder / "in.jsonl").write_text("".join(json.dumps({"id": n, "text": f"text {n}"}) + "\n" for n in range(100)))
    options = [word for url in urls for word in ("--redis-url", url)]
    done = CliRunner().invoke(cli, ["embed", "in.jsonl", "-o", "out.jsonl", "--texts-per-job", "4", *options])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(100))
    np.testing.assert_allclose([row["embedding"] for row in rows], [vector_of(f"text {n}") for n in range(100)])


@pytest.mark.usefixtures("workers")
def test_rankings_and_batches_go_to_several_servers(folder: Path, urls: tuple[str, str]) -> None:
    (folder / "in.jsonl").write_bytes(jsonl(embedding(f"id {n}", f"text {n}") for n in range(100)))
    (folder / "documents.txt").write_text("a dog\na fox\n")
    environment = {"IMPETUS_REDIS_URL": " ".join(urls)}
    done = CliRunner().invoke(cli, ["batch", "run", "in.jsonl", "-o", "out.jsonl"], env=environment)
    assert done.exit_code == 0, done.output
    assert len(answers(folder / "out.jsonl")) == 100
    for _ in urls:
        ranked = CliRunner().invoke(cli, ["rerank", "fox", "documents.txt"], env=environment)
        assert len(ranked.stdout.splitlines()) == 2, ranked.output
    for url in urls:
        with Redis.from_url(url) as client:
            assert not list(client.scan_iter("*batch*"))
            assert not client.zcard("rq:finished:embedding-bulk")


def test_tasks_have_several_servers_too(urls: tuple[str, str], other: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "_EVERY_S", 0.0)
    monkeypatch.setattr(presence, "_SPARED", 0.0)
    texts = [f"text {number}" for number in range(300)]

    async def main() -> None:
        async with AsyncSpreadProducer(urls, patience_s=10) as producer:
            handles = [handle async for handle in producer.embed_many(texts, texts_per_job=4)]
            vectors = [row for handle in handles for row in (await handle.result(30)).vectors]
            np.testing.assert_array_equal(vectors, [vector_of(text) for text in texts])
            assert set(map(producer.of, (handle.job_id for handle in handles))) == set(producer.servers)
            for number in range(4):
                handle = await producer.embed(str(number))
                result = await (await producer.handle(handle.job_id)).result(30)
                assert isinstance(result, EmbeddingResult)
            for url in urls * 4:
                assert await (await producer.handle(Producer(url).embed("put there by others").job_id)).status()
            with pytest.raises(JobNotFoundError, match="no-such-job"):
                await producer.handle("no-such-job")
            work.close()
            other.kill()
            ids = [(await producer.embed(str(number))).job_id for number in range(4)]
            assert {producer.of(job_id) for job_id in ids} == {producer.servers[0]}
        with pytest.raises(NoServerError, match="does not answer"):
            async with AsyncSpreadProducer([other.url, f"{other.url[:-1]}1"]):
                pass

    with ExitStack() as work:
        for url in urls:
            work.enter_context(working(url))
        asyncio.run(main())


def test_one_status_shows_both_and_says_which_has_no_worker_or_is_away(
    spread: SpreadProducer, urls: tuple[str, str], other: Valkey
) -> None:
    ids = [spread.embed(str(number)).job_id for number in range(10)]
    environment = {"IMPETUS_REDIS_URL": " ".join(urls)}
    said = json.loads(CliRunner().invoke(cli, ["status", "--json"], env=environment).stdout)
    assert {queue["name"]: queue["waiting"] for queue in said["queues"]}["embedding"] == 10
    assert [server["server"] for server in said["servers"]] == list(urls)
    shown = CliRunner().invoke(cli, ["status"], env=environment).stdout
    assert all(f"Server  {url}" in shown and f"--redis-url {url}" in shown for url in urls)
    for job_id in ids:
        cancelled = CliRunner().invoke(cli, ["cancel", job_id], env=environment)
        assert cancelled.output == f"cancelled {job_id}\n"
    other.kill()
    left = json.loads(CliRunner().invoke(cli, ["status", "--json"], env=environment).stdout)
    assert [len(server["findings"]) for server in left["servers"]][1] == 1
    assert "does not answer" in left["servers"][1]["findings"][0]["sentence"]
    twice = CliRunner().invoke(cli, ["status", "--redis-url", urls[0], "--redis-url", urls[0]])
    assert twice.exit_code == 2
    assert "named twice" in twice.output


@pytest.mark.system
def test_a_run_at_two_servers_that_was_killed_takes_up_its_jobs_at_both(folder: Path, urls: tuple[str, str]) -> None:
    (folder / "in.jsonl").write_text("".join(json.dumps({"id": n, "text": f"text {n}"}) + "\n" for n in range(200)))
    arguments = ["embed", "in.jsonl", "-o", "out.jsonl", "--texts-per-job", "4", "--progress", "none"]
    environment = {**os.environ, "IMPETUS_REDIS_URL": " ".join(urls)}
    killed = subprocess.Popen([sys.executable, "-m", "impetus_producer", *arguments], env=environment)
    try:
        eventually(lambda: all(queued(url) for url in urls) and sum(map(queued, urls)) >= 50)
    finally:
        killed.kill()
        killed.wait()
    computed = Computed()
    # In another order they are the same servers.
    environment["IMPETUS_REDIS_URL"] = " ".join(reversed(urls))
    with working(urls[0], computed), working(urls[1], computed):
        done = CliRunner().invoke(cli, arguments, env=environment)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(200))
    assert set(computed.values()) == {1}
