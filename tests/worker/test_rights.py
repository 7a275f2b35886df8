"""The two users of README, and of compose.yaml: what a worker and a producer need, and what is not theirs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError

from impetus_producer import Producer
from impetus_producer.servers.discovery import REDIS_URL_VARIABLE
from tests.composed import PASSWORDS, ComposedValkey
from tests.worker.conftest import ROOT, RunningWorker, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system
OURS = ("impetus:tokens:embedding", "impetus:leases:embedding", "impetus:deaths:embedding", "impetus:worker:w")


@pytest.fixture(params=["README.md", "docker/compose.yaml"])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A server as each of the two users sees it, by their names."""
    if request.param == "README.md":
        yield from _with_readmes_users(request.getfixturevalue("connection"), request.getfixturevalue("redis_url"))
        return
    server = ComposedValkey(tmp_path)
    yield {
        "worker": server.url_of("worker", REDIS_URL_VARIABLE),
        "producer": server.url_of("rq-dashboard", "RQ_DASHBOARD_REDIS_URL"),
    }
    server.kill()


def _with_readmes_users(connection: Redis, redis_url: str) -> Iterator[dict[str, str]]:
    lines = re.findall(r"ACL SETUSER (worker|producer) on >\S+ (.*)", (Path(ROOT) / "README.md").read_text())
    assert [name for name, _ in lines] == ["worker", "producer"]
    for name, rules in lines:
        connection.execute_command("ACL", "SETUSER", name, "reset", "on", ">word", *rules.split())  # type: ignore[no-untyped-call]
    yield {name: redis_url.replace("redis://", f"redis://{name}:word@") for name, _ in lines}
    connection.execute_command("ACL", "DELUSER", *(name for name, _ in lines))  # type: ignore[no-untyped-call]


def test_a_worker_and_a_producer_do_all_that_they_do_with_their_rights(urls: dict[str, str], tmp_path: Path) -> None:
    backends = ("--embedding-backend", "simulated", "--generation-backend", "simulated")
    worker = RunningWorker(urls["worker"], tmp_path / "log", *backends, "--simulated-a-ms", "30")
    try:
        producer = Producer(urls["producer"])
        handle = producer.embed(["a", "b"])
        assert len(handle.result(timeout_s=30).vectors) == 2
        handle.delete()
        many = producer.embed_many(["c"] * 9, texts_per_job=3)
        assert [len(each.result(timeout_s=30).vectors) for each in many] == [3, 3, 3]
        story = producer.generate("tell", max_tokens=5, stream=True, cancel_if_abandoned=True)
        assert "".join(story.stream(timeout_s=30)) == story.result(timeout_s=30).text
        long = producer.generate("tell more", max_tokens=5000)
        eventually(lambda: long.status() == "started")
        assert long.cancel(timeout_s=20)
        assert "NOPERM" not in worker.log
    finally:
        worker.stop()


def test_a_producer_cannot_touch_what_workers_rely_on(urls: dict[str, str]) -> None:
    with Redis.from_url(urls["producer"]) as producer:
        for key in OURS:
            for command in (("DEL", key), ("SET", key, "1"), ("HSET", key, "a", "1"), ("ZADD", key, "1", "a")):
                with pytest.raises(NoPermissionError):
                    producer.execute_command(*command)


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
