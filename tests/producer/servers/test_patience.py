"""Clients wait for a server that goes away, and lose and repeat nothing over it."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from redis import Redis
from rq.job import Job
from rq.serializers import JSONSerializer

from impetus_producer import (
    ImpetusError,
    NoServerError,
    Producer,
    ResultTimeoutError,
    ServerError,
    ServerFullError,
    embed_documents,
)
from impetus_producer.bulk.run import EmbeddedDocument
from impetus_producer.cli.main import cli
from impetus_producer.documents import Document, FailedDocument
from impetus_producer.servers import connections
from impetus_producer.servers.patience import Patience
from tests.patience import eventually

from ..stock_worker import embedding_of, finish, honest_work, vector_of, working
from ..talks.streaming import Reading, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .valkey import Proxy, Valkey

    MakeValkey = Callable[..., Valkey]


@pytest.fixture
def durable(valkey: MakeValkey) -> Valkey:
    return valkey("--appendonly", "yes", "--appendfsync", "always")


class Said(list[str]):
    """What a producer says of its server, and whether it has said anything yet."""

    def __init__(self, producer: Producer) -> None:
        super().__init__()
        self.first = threading.Event()
        producer.patience.say = self.note

    def note(self, sentence: str) -> None:
        self.append(sentence)
        self.first.set()


@contextmanager
def in_a_thread(work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Runs `work` beside the block; afterwards the list holds what it returned or raised."""
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append(work())
        except ImpetusError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield ended
    thread.join(60)
    assert not thread.is_alive()


def test_a_result_is_waited_for_through_a_restart_which_is_said_once(durable: Valkey) -> None:
    producer = Producer(durable.url)
    said = Said(producer)
    handle = producer.embed("a")
    with in_a_thread(handle.result) as ended:
        durable.kill()
        assert said.first.wait(60)
        durable.start()
        with Redis.from_url(durable.url) as client:
            finish(client, handle.job_id, embedding_of(["a"]))
    assert list(ended[0].vectors[0]) == vector_of("a")
    assert [sentence.partition(":")[0] for sentence in said] == [
        "Waiting up to 300 s for the server",
        "The server answers again.",
    ]


def test_many_threads_that_share_a_producer_come_back_together(durable: Valkey) -> None:
    producer = Producer(durable.url)
    said = Said(producer)
    handles = [producer.embed("a") for _ in range(40)]
    with ExitStack() as threads:
        ended = [threads.enter_context(in_a_thread(handle.result)) for handle in handles]
        durable.kill()
        assert said.first.wait(60)
        durable.start()
        with Redis.from_url(durable.url) as client:
            for handle in handles:
                finish(client, handle.job_id, embedding_of(["a"]))
    assert all(list(results[0].vectors[0]) == vector_of("a") for results in ended)


def test_the_library_says_it_as_a_warning(durable: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    producer = Producer(durable.url, patience_s=0.2)
    durable.kill()
    with pytest.raises(NoServerError):
        producer.embed("a")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("impetus_producer", "WARNING")


def test_what_is_enqueued_while_the_server_is_away_is_enqueued_once(durable: Valkey) -> None:
    producer = Producer(durable.url)
    said = Said(producer)
    durable.kill()
    with in_a_thread(lambda: [producer.embed("a"), producer.generate("b", cancel_if_abandoned=True)]) as ended:
        assert said.first.wait(60)
        durable.start()
    embedding, generation = ended[0]
    assert producer.connection.lrange("rq:queue:embedding", 0, -1) == [embedding.job_id.encode()]
    assert producer.connection.lrange("rq:queue:generation", 0, -1) == [generation.job_id.encode()]


def test_a_stream_goes_on_after_a_restart_where_it_was(durable: Valkey) -> None:
    producer = Producer(durable.url)
    said = Said(producer)
    handle = producer.generate("a", stream=True)
    with Redis.from_url(durable.url) as client:
        writer = Writer(client, handle.job_id).start().write("one ")
        reading = Reading(handle.stream)
        reading.until("one ")
        durable.kill()
        assert said.first.wait(60)
        durable.start()
        writer.write("two").finish()
    assert "".join(reading.all()) == "one two"


def test_patience_ends(durable: Valkey) -> None:
    producer = Producer(durable.url, patience_s=0.2)
    handle = producer.embed("a")
    durable.kill()
    for ask in (handle.result, handle.status, handle.cancel, handle.delete, lambda: producer.embed("b")):
        with pytest.raises(NoServerError, match="does not answer"):
            ask()
    with pytest.raises(NoServerError):
        list(embed_documents(producer, [Document("a", "a")]))


def test_the_time_given_for_a_result_ends_the_wait_for_the_server_too(durable: Valkey) -> None:
    producer = Producer(durable.url)
    handle, generation = producer.embed("a"), producer.generate("b")
    durable.kill()
    for ask in (handle.result, handle.cancel, lambda limit_s: list(generation.stream(limit_s))):
        with pytest.raises(ResultTimeoutError, match="does not answer"):
            ask(0.2)


def test_patience_is_counted_over_all_that_is_asked_in_one_outage(durable: Valkey) -> None:
    producer = Producer(durable.url, patience_s=1)
    said = Said(producer)
    handle = producer.embed("a")
    durable.kill()

    def wait_in_pieces() -> None:
        while True:
            with suppress(ResultTimeoutError):
                handle.result(timeout_s=0.1)

    with pytest.raises(NoServerError):
        wait_in_pieces()
    assert len(said) == 1
    producer.patience.limit_s = 300
    durable.start()
    assert handle.status() == "queued"
    durable.kill()
    with pytest.raises(ResultTimeoutError):
        handle.result(timeout_s=0.1)
    assert len(said) == 3


def test_the_command_that_waits_for_an_answer_gives_up_with_patience(durable: Valkey) -> None:
    command = ["generate", "x", "--redis-url", durable.url, "--patience", "1"]
    with in_a_thread(lambda: CliRunner().invoke(cli, command)) as ended:
        eventually(lambda: durable.ask("LLEN", "rq:queue:generation"))
        durable.kill()
    assert ended[0].exit_code == 1
    assert ended[0].stderr.endswith("is it running?\n")


def test_patience_is_taken_from_the_environment(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPETUS_PATIENCE_S", "7")
    assert Producer(redis_url).patience.limit_s == 7
    assert Producer(redis_url, patience_s=8).patience.limit_s == 8
    monkeypatch.setenv("IMPETUS_PATIENCE_S", "long")
    with pytest.raises(ImpetusError, match="IMPETUS_PATIENCE_S is to be a number"):
        Producer(redis_url)


@pytest.mark.parametrize(
    ("trouble", "cure"),
    [
        (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        (("SCRIPT", "FLUSH"), ("PING",)),
    ],
    ids=["NOREPLICAS", "READONLY", "OOM", "NOSCRIPT"],
)
def test_a_server_that_refuses_for_now_is_waited_for(
    valkey: MakeValkey, trouble: tuple[str, ...], cure: tuple[str, ...]
) -> None:
    server = valkey()
    producer = Producer(server.url)
    producer.embed("before")
    said = Said(producer)
    server.ask(*trouble)
    with in_a_thread(lambda: producer.embed("a")) as ended:
        if trouble[0] != "SCRIPT":
            assert said.first.wait(60)
        server.ask(*cure)
    assert ended[0].status() == "queued"


def test_a_line_that_a_router_forgot_is_noticed_and_made_anew(
    proxy: Proxy, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections._FIXED, "socket_timeout", 1.5)
    producer = Producer(proxy.url)
    handle = producer.embed("a")
    with in_a_thread(handle.result) as ended, Redis.from_url(redis_url) as client:
        eventually(lambda: client.info("clients")["blocked_clients"] == 1)
        proxy.forget()
        finish(client, handle.job_id, embedding_of(["a"]))
    assert list(ended[0].vectors[0]) == vector_of("a")


def test_a_run_keeps_what_it_read_and_sends_again_what_a_server_lost(valkey: MakeValkey) -> None:
    server = valkey()
    producer = Producer(server.url)
    said = Said(producer)
    documents = [Document(f"id-{number}", f"text {number}") for number in range(60)]
    done = 0

    def some(function: str, request: dict[str, Any]) -> Any:
        nonlocal done
        done += len(request["input"])
        return honest_work(function, request)

    outcomes = []
    with working(server.url, some):
        run = embed_documents(producer, documents, texts_per_job=2, max_backlog_jobs=8)
        outcomes += [next(run) for _ in range(20)]
    # Some jobs of the window are in Redis now, and no worker is.
    queued = producer.connection.llen("rq:queue:embedding-bulk")
    with in_a_thread(lambda: list(run)) as ended:
        server.kill()
        assert said.first.wait(60)
        server.start()
        with working(server.url, some):
            eventually(lambda: ended)
    outcomes += ended[0]
    assert [outcome.id for outcome in outcomes] == [document.id for document in documents]
    vectors = [outcome.vector for outcome in outcomes if isinstance(outcome, EmbeddedDocument)]
    np.testing.assert_array_equal(vectors, [vector_of(document.text) for document in documents])
    assert done <= 60 + 2 * (8 + queued)


def test_a_job_that_is_lost_again_and_again_fails_alone(producer: Producer) -> None:
    def evict() -> None:
        producer.connection.flushall()

    (outcome,) = embed_documents(producer, [Document("a", "a")], while_waiting=evict)
    assert outcome == FailedDocument("a", "its job was lost from Redis 6 times", retryable=True)


def test_a_run_against_a_full_server_makes_room_by_reading(valkey: MakeValkey) -> None:
    server = valkey()
    producer = Producer(server.url)
    said = Said(producer)

    def finish_some(count: int) -> None:
        for _ in range(count):
            popped: Any = producer.connection.lpop("rq:queue:embedding-bulk")
            if popped is not None:
                texts = Job.fetch(popped.decode(), producer.connection, serializer=JSONSerializer).args[0]["input"]
                finish(producer.connection, popped.decode(), embedding_of(texts))

    limits = iter(["1"])

    def work() -> None:
        # The first time half a window is done, and nothing new has room then; later all has.
        limit = next(limits, "0")
        producer.connection.config_set("maxmemory", "0")
        finish_some(4 if limit == "1" else 8)
        producer.connection.config_set("maxmemory", limit)

    documents = [Document(f"{number}", f"text {number}") for number in range(40)]
    outcomes = list(embed_documents(producer, documents, texts_per_job=2, max_backlog_jobs=8, while_waiting=work))
    assert [outcome.id for outcome in outcomes] == [document.id for document in documents]
    assert all(isinstance(outcome, EmbeddedDocument) for outcome in outcomes)
    assert said == []


def test_a_run_against_a_server_that_stays_full_ends_with_patience(valkey: MakeValkey) -> None:
    server = valkey()
    producer = Producer(server.url, patience_s=0.2)

    def fill() -> None:
        server.ask("CONFIG", "SET", "maxmemory", "1")
        (first,) = server.ask("LRANGE", "rq:queue:embedding-bulk", 0, 0)
        server.ask("DEL", b"rq:job:" + first)  # is lost, and so is to be sent again

    documents = [Document(f"{number}", f"text {number}") for number in range(40)]
    with pytest.raises(ServerFullError, match="maxmemory"):
        list(embed_documents(producer, documents, texts_per_job=2, max_backlog_jobs=8, while_waiting=fill))


def test_the_command_waits_and_says_so_on_stderr(
    durable: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, vectors = tmp_path / "in.txt", tmp_path / "out.jsonl"
    documents.write_text("".join(f"text {number}\n" for number in range(20)))
    away, went = threading.Event(), Patience.went

    def note(patience: Patience, error: ServerError, **more: bool) -> float:
        away.set()
        return went(patience, error, **more)

    monkeypatch.setattr(Patience, "went", note)
    arguments = ["embed", str(documents), "-o", str(vectors), "--texts-per-job", "2", "--redis-url", durable.url]
    with in_a_thread(lambda: CliRunner().invoke(cli, [*arguments, "--patience", "60"])) as ended:
        eventually(lambda: durable.ask("LLEN", "rq:queue:embedding-bulk"))
        durable.kill()
        assert away.wait(60)
        durable.start()
        with working(durable.url):
            eventually(lambda: ended)
    result = ended[0]
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("Waiting up to 60 s for the server: ") == 1
    assert len(vectors.read_text().splitlines()) == 20
