"""A gateway before several servers: each job at one of them, and one that goes is done without."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from impetus_gateway.seeing.watch import Watch
from impetus_gateway.settings import Settings
from impetus_producer import Producer
from impetus_producer.watching.fleet import read_fleet
from tests.patience import eventually
from tests.producer.batches.requests import EMBEDDINGS, embedding, jsonl
from tests.producer.servers.valkey import Valkey
from tests.producer.stock_worker import vector_of

from .serving import Serving, is_ready, serving, stock_worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Valkey]:
    server = Valkey(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def work(other: Valkey) -> Iterator[ExitStack]:
    """At the other server."""
    with ExitStack() as work:
        work.enter_context(stock_worker(other.url))
        yield work


@pytest.fixture
def served(redis_url: str, other: Valkey, work: ExitStack) -> Iterator[Serving]:
    with stock_worker(redis_url), serving(redis_url, others=[other.url]) as running:
        eventually(lambda: is_ready(running, "embedding"))
        yield running


def test_a_gateway_ends_though_a_server_that_it_asked_hangs(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    asked, over = threading.Event(), threading.Event()

    def hangs(connection: Redis) -> None:
        asked.set()
        over.wait()

    async def ends() -> None:
        with Producer(redis_url) as producer:
            looking = asyncio.create_task(Watch([producer], Settings()).look())
            while not asked.is_set():
                await asyncio.sleep(0)
            looking.cancel()

    monkeypatch.setattr("impetus_gateway.seeing.watch.read_fleet", hangs)
    ending = threading.Thread(target=lambda: asyncio.run(ends()))
    ending.start()
    try:
        eventually(lambda: not ending.is_alive())
    finally:
        over.set()
        ending.join()


def ask(served: Serving, text: str, **headers: str) -> str:
    """The id of the job that embedded the text."""
    answer = served.post("/v1/embeddings", {"model": "m", "input": text}, **headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["embedding"] == pytest.approx(list(vector_of(text)))
    return answer.headers["x-job-id"]


def test_requests_go_to_all_servers_and_named_jobs_are_found(served: Serving, redis_url: str, other: Valkey) -> None:
    names = [f"job-{number}" for number in range(12)]
    for name in names:
        assert ask(served, name, x_job_id=name) == name
        assert ask(served, name, x_job_id=name) == name
        assert served.client.get(f"/v1/jobs/{name}").json()["status"] == "finished"
    kept = [{name for name in names if client.exists(f"rq:job:{name}")} for client in clients(redis_url, other.url)]
    assert all(kept)
    assert kept[0] ^ kept[1] == set(names)
    assert served.post("/v1/embeddings", {"model": "m", "input": "another"}, x_job_id=names[0]).status_code == 409


def clients(*urls: str) -> Iterator[Redis]:
    for url in urls:
        with Redis.from_url(url) as client:
            yield client


def test_a_server_that_goes_is_done_without_until_it_is_back(served: Serving, other: Valkey, work: ExitStack) -> None:
    work.close()
    other.kill()
    eventually(lambda: len(served.gateway.watch.reached) == 1)
    for number in range(8):
        ask(served, f"text {number}")
    assert is_ready(served, "embedding")
    other.start()
    eventually(lambda: len(served.gateway.watch.reached) == 2)
    # Nobody works there now, so that nothing is sent there.
    for number in range(8):
        ask(served, f"text {number}")


def test_the_workers_of_all_servers_are_suspended_and_go_on(served: Serving, redis_url: str, other: Valkey) -> None:
    for told, suspended in (("suspend", True), ("resume", False)):
        assert served.client.post(f"/v1/fleet/{told}").status_code == 200
        assert [read_fleet(client).suspended for client in clients(redis_url, other.url)] == [suspended] * 2


def test_a_batch_is_run_at_all_servers(served: Serving) -> None:
    lines = jsonl(embedding(f"id {number}", f"text {number}") for number in range(40))
    file = served.client.post("/v1/files", files={"file": ("in.jsonl", lines)}, data={"purpose": "batch"}).json()
    request = {"input_file_id": file["id"], "endpoint": EMBEDDINGS, "completion_window": "1h"}
    batch = served.post("/v1/batches", request).json()
    eventually(lambda: served.client.get(f"/v1/batches/{batch['id']}").json()["status"] == "completed")
    shown = served.client.get(f"/v1/batches/{batch['id']}").json()
    assert shown["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
