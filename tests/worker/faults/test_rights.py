"""The two users of README, and of compose.yaml: what a worker and a producer need, and what is not theirs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError
from rq import Queue, Worker
from rq.command import send_shutdown_command
from rq.serializers import JSONSerializer

from impetus_producer import Producer
from impetus_producer.contract import EMBED_FUNCTION
from impetus_producer.enqueueing.scripts import CANCEL_SCRIPT, ENQUEUE_SCRIPT, WITHDRAW_SCRIPT, digest
from impetus_producer.servers.discovery import REDIS_URL_VARIABLE
from impetus_producer.servers.fitness import look
from impetus_producer.servers.rights import PRODUCER_RIGHTS, WORKER_RIGHTS, missing_rights
from tests.composed import PASSWORDS, ComposedValkey
from tests.paths import ROOT
from tests.patience import eventually
from tests.users import make_user, rules_of
from tests.worker.conftest import RunningWorker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rq.job import Job

pytestmark = pytest.mark.system
FILES = ["README.md", "docker/compose.yaml"]
#: So slow that a job which is cancelled by a key, which is looked at every 2 s, still runs by then.
SIMULATED = ("--embedding-backend", "simulated", "--generation-backend", "simulated", "--simulated-a-ms", "150")
RERANKING = ("--roles", "embedding,generation,rerank", "--rerank-backend", "simulated")
#: What stops workers, commands them, or is theirs to write.
WORKERS_KEYS = [
    "rq:suspended",
    "rq:scheduler-lock:embedding",
    "rq:workers",
    "rq:workers:embedding",
    "rq:worker:w",
    "rq:wip:embedding",
    "rq:clean_registries:embedding",
    *(
        key.replace("*", "embedding")
        for key in WORKER_RIGHTS
        if key.startswith("impetus:") and key not in ("impetus:awaited:*", "impetus:cancel:*")
    ),
]
WRITES = (
    ("SET", 1), ("DEL",), ("EXPIRE", 1), ("HSET", "a", 1), ("SADD", "a"), ("SREM", "a"), ("ZADD", 1, "a"),
    ("ZREM", "a"), ("RPUSH", "a"), ("XADD", "*", "a", 1), ("RENAME", "rq:job:a"), ("UNLINK",),
)  # fmt: skip
COMMANDS = (
    ("EVAL", "while true do end", 0),
    ("EVALSHA", "0" * 40, 0),
    ("EVAL_RO", "while true do end", 0),
    ("FCALL", "f", 0),
    ("FUNCTION", "LOAD", "#!lua name=a\nserver.register_function('f', function() while true do end end)"),
    ("SCRIPT", "FLUSH"),
    ("SCRIPT", "KILL"),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "maxmemory", 1),
    ("KEYS", "*"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("SWAPDB", 0, 1),
    ("SHUTDOWN",),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("CLIENT", "PAUSE", 10),
    ("MONITOR",),
    ("ACL", "LIST"),
    ("SAVE",),
    ("REPLICAOF", "127.0.0.1", 1),
    ("SUBSCRIBE", "rq:pubsub:w"),
    ("PUBLISH", "rq:pubsub:w", "{}"),
    ("SPUBLISH", "rq:pubsub:w", "{}"),
    ("SORT", "rq:queue:embedding", "STORE", "rq:queue:a"),
    ("COPY", "rq:job:a", "rq:suspended"),
    ("RENAME", "rq:job:a", "rq:suspended"),
)


@pytest.fixture(params=FILES)
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A server as each of the two users sees it, by their names."""
    if request.param == "README.md":
        yield from _with_readmes_users(request.getfixturevalue("connection"), request.getfixturevalue("redis_url"))
        return
    server = ComposedValkey(tmp_path)
    yield {
        "worker": server.url_of("worker", REDIS_URL_VARIABLE),
        "producer": f"redis://producer:{PASSWORDS['REDIS_PRODUCER_PASSWORD']}@127.0.0.1:{server.port}/0",
    }
    server.kill()


def _with_readmes_users(connection: Redis, redis_url: str) -> Iterator[dict[str, str]]:
    names = ("worker", "producer")
    for name in names:
        make_user(connection, name, "word")
    yield {name: redis_url.replace("redis://", f"redis://{name}:word@") for name in names}
    connection.execute_command("ACL", "DELUSER", *names)  # type: ignore[no-untyped-call]


def test_a_worker_and_a_producer_do_all_that_they_do_with_their_rights(urls: dict[str, str], tmp_path: Path) -> None:
    worker = RunningWorker(urls["worker"], tmp_path / "log", *SIMULATED, *RERANKING)
    try:
        producer = Producer(urls["producer"])
        handle = producer.embed(["a", "b"])
        assert len(handle.result(timeout_s=30).vectors) == 2
        handle.delete()
        many = producer.embed_many(["c"] * 9, texts_per_job=3)
        assert [len(each.result(timeout_s=30).vectors) for each in many] == [3, 3, 3]
        assert len(producer.rerank("q", ["a", "b"]).result(timeout_s=30).results) == 2
        story = producer.generate("tell", max_tokens=5, stream=True, cancel_if_abandoned=True)
        assert "".join(story.stream(timeout_s=30)) == story.result(timeout_s=30).text
        long = producer.generate("tell more", max_tokens=5000, ignore_eos=True)
        eventually(lambda: long.status() == "started")
        assert long.cancel(timeout_s=20)
        assert "NOPERM" not in worker.log
    finally:
        worker.stop()


def test_a_producer_with_plain_rq_does_all_that_rq_promises_it(urls: dict[str, str], tmp_path: Path) -> None:
    worker = RunningWorker(urls["worker"], tmp_path / "log", *SIMULATED)
    try:
        with Redis.from_url(urls["producer"]) as connection:
            queue = Queue("embedding", connection=connection, serializer=JSONSerializer)
            first = queue.enqueue(EMBED_FUNCTION, {"input": ["a"]})
            second = queue.enqueue(EMBED_FUNCTION, {"input": ["b"]}, depends_on=first, meta={"of": "mine"})
            eventually(lambda: second.get_status() == "finished")
            assert embeddings_of(first)
            assert embeddings_of(second)
            hopeless = queue.enqueue(EMBED_FUNCTION, {"input": []})
            eventually(lambda: hopeless.get_status() == "failed")
            told = hopeless.latest_result()
            assert told is not None
            assert told.exc_string
            elsewhere = Queue("nobodys", connection=connection, serializer=JSONSerializer)
            waits = elsewhere.enqueue(EMBED_FUNCTION, {"input": ["a"]})
            after = elsewhere.enqueue(EMBED_FUNCTION, {"input": ["b"]}, depends_on=waits)
            assert elsewhere.job_ids == [waits.id]
            waits.cancel()
            assert waits.get_status() == "canceled"
            after.delete()
            waits.delete()
            info = [sys.executable, "-m", "rq.cli", "info", "--url", urls["producer"]]
            said = subprocess.run(info, capture_output=True, text=True, check=True).stdout
            assert re.search(r"embedding +\| 0, 0 executing, 2 finished, 1 failed", said)
            assert "1 workers" in said
    finally:
        worker.stop()


def embeddings_of(job: Job) -> Any:
    answer: Any = job.return_value()
    return answer["embeddings"]


def test_a_producers_rights_are_enough_for_all_that_status_looks_at(urls: dict[str, str]) -> None:
    with Redis.from_url(urls["producer"]) as connection:
        assert missing_rights(connection, "producer") == []
        fitness = look(connection, "producer")
        assert (fitness.refusal, fitness.warnings) == (None, ())


@pytest.mark.parametrize("key", WORKERS_KEYS)
def test_a_producer_cannot_write_what_workers_rely_on(urls: dict[str, str], key: str) -> None:
    with Redis.from_url(urls["producer"]) as producer:
        execute: Any = producer.execute_command
        for name, *rest in WRITES:
            with pytest.raises(NoPermissionError):
                execute(name, key, *rest)


def test_a_producer_can_neither_stop_workers_nor_hold_the_server_up(urls: dict[str, str]) -> None:
    with Redis.from_url(urls["producer"]) as producer:
        execute: Any = producer.execute_command
        for command in COMMANDS:
            with pytest.raises(NoPermissionError):
                execute(*command)
        with pytest.raises(NoPermissionError):
            send_shutdown_command(producer, "w")
        # It may have the server keep another script, and not have it run.
        other = producer.script_load("return redis.call('SET', 'rq:suspended', 1)")
        with pytest.raises(NoPermissionError):
            producer.evalsha(other, 0)


@pytest.mark.parametrize("file", FILES)
def test_the_scripts_that_a_producer_may_run_are_those_that_the_library_has(file: str) -> None:
    said = re.findall(r"\+evalsha\|(\w+)", (Path(ROOT) / file).read_text())
    assert said == [digest(ENQUEUE_SCRIPT), digest(CANCEL_SCRIPT), digest(WITHDRAW_SCRIPT)]


def test_readme_and_compose_give_a_producer_the_same_rights() -> None:
    written = (Path(ROOT) / "docker/compose.yaml").read_text().replace("\\\n", " ")
    (composed,) = re.findall(r"user producer on >\S+ (.*)", written)
    assert sorted(composed.split()) == sorted(rules_of("producer"))


def test_the_dashboard_may_requeue_and_no_more(tmp_path: Path) -> None:
    server = ComposedValkey(tmp_path)
    try:
        with (
            Redis.from_url(server.url_of("rq-dashboard", "RQ_DASHBOARD_REDIS_URL")) as connection,
            Redis(port=server.port, password=PASSWORDS["REDIS_PASSWORD"]) as operator,
        ):
            queue = Queue("embedding", connection=operator, serializer=JSONSerializer)
            job = queue.enqueue(EMBED_FUNCTION, {"input": []})
            queue.remove(job)
            queue.failed_job_registry.add(job, ttl=-1)
            shown = Queue("embedding", connection=connection, serializer=JSONSerializer)
            shown.failed_job_registry.requeue(job.id)
            assert shown.job_ids == [job.id]
            # RQ strikes workers off whose record ran out, when it lists them.
            operator.sadd("rq:workers", "rq:worker:gone")
            assert Worker.all(connection=connection) == []
            assert operator.smembers("rq:workers") == set()
            execute: Any = connection.execute_command
            for key in [key for key in WORKERS_KEYS if key != "rq:workers"] + ["rq:results:a", "rq:wip:a"]:
                for name, *rest in WRITES:
                    with pytest.raises(NoPermissionError):
                        execute(name, key, *rest)
            for command in [*COMMANDS, ("DEL", "rq:job:a"), ("SADD", "rq:workers", "a"), ("SCRIPT", "LOAD", "a")]:
                with pytest.raises(NoPermissionError):
                    execute(*command)
    finally:
        server.kill()


def test_every_command_of_a_producers_scripts_is_among_its_rights() -> None:
    used = set(re.findall(r"call\('([A-Z]+)'", ENQUEUE_SCRIPT + CANCEL_SCRIPT + WITHDRAW_SCRIPT))
    used |= {"LPUSH", "RPUSH"}  # one of them, by the job
    assert used <= set(" ".join(PRODUCER_RIGHTS.values()).split())


def test_whoever_has_no_password_is_let_in_by_none_and_the_operator_may_do_everything(tmp_path: Path) -> None:
    server = ComposedValkey(tmp_path)
    try:
        for user in ("", "worker:@", "producer:wrong@", ":@"):
            url = f"redis://{user}127.0.0.1:{server.port}/0"
            with Redis.from_url(url) as stranger, pytest.raises(AuthenticationError):
                stranger.ping()
        with Redis.from_url(f"redis://:{PASSWORDS['REDIS_PASSWORD']}@127.0.0.1:{server.port}/0") as operator:
            wanted = {"appendonly": "yes", "maxmemory-policy": "noeviction", "maxmemory": str(2**30)}
            assert operator.config_get(*wanted) == wanted
    finally:
        server.kill()
