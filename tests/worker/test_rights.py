"""The two users of README's Security: what a worker and what a service need, and what a service must not touch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError

from impetus_producer import Producer
from tests.worker.conftest import ROOT, RunningWorker, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system
OURS = ("impetus:tokens:embedding", "impetus:leases:embedding", "impetus:deaths:embedding", "impetus:worker:w")


@pytest.fixture
def urls(connection: Redis, redis_url: str) -> Iterator[dict[str, str]]:
    """The server as each of README's users sees it, by their names."""
    lines = re.findall(r"ACL SETUSER (worker|service) on >\S+ (.*)", (Path(ROOT) / "README.md").read_text())
    assert [name for name, _ in lines] == ["worker", "service"]
    for name, rules in lines:
        connection.execute_command("ACL", "SETUSER", name, "reset", "on", ">word", *rules.split())  # type: ignore[no-untyped-call]
    yield {name: redis_url.replace("redis://", f"redis://{name}:word@") for name, _ in lines}
    connection.execute_command("ACL", "DELUSER", *(name for name, _ in lines))  # type: ignore[no-untyped-call]


def test_a_worker_and_a_service_with_readmes_rights_do_all_that_they_do(urls: dict[str, str], tmp_path: Path) -> None:
    backends = ("--embedding-backend", "simulated", "--generation-backend", "simulated")
    worker = RunningWorker(urls["worker"], tmp_path / "log", *backends, "--simulated-a-ms", "30")
    try:
        producer = Producer(urls["service"])
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


def test_a_service_cannot_touch_what_workers_rely_on(urls: dict[str, str]) -> None:
    with Redis.from_url(urls["service"]) as service:
        for key in OURS:
            for command in (("DEL", key), ("SET", key, "1"), ("HSET", key, "a", "1"), ("ZADD", key, "1", "a")):
                with pytest.raises(NoPermissionError):
                    service.execute_command(*command)
