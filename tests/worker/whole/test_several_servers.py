"""One worker of two servers: it takes from both by turns, with one model, and what befalls one is no matter to the
other."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from redis import Redis

from impetus_producer import EmbeddingHandle, Producer
from impetus_worker.settings import DEFAULT_LEASE_S
from tests.patience import eventually

from ..faults.expected import vectors_of

if TYPE_CHECKING:
    from ..conftest import Fleet
    from ..faults.breakable import Server, Workers
    from ..faults.site import Site

pytestmark = pytest.mark.system


@pytest.fixture
def second(site: Site) -> Server:
    return site.another_server()


def at_both(site: Site, second: Server, **settings: Any) -> Workers:
    """A worker of both, that is in the books of both."""
    workers = site.start(url=f"{site.url} {second.url}", **settings)
    with Redis.from_url(second.url) as connection:
        eventually(lambda: connection.smembers("rq:workers"))
    return workers


def has_its_vector(handle: EmbeddingHandle, text: str) -> bool:
    return bool(np.allclose(handle.result(60).vectors, vectors_of({"input": text}), atol=1e-6))


def test_jobs_of_both_servers_are_run_by_one_engine_in_turns(site: Site, second: Server) -> None:
    texts = [f"one {number}" for number in range(2000)]
    first_has = list(site.producer.embed_many(texts, texts_per_job=1, max_backlog_jobs=len(texts) + 1))
    workers = at_both(site, second, a_ms=20.0, max_batch_texts=8)
    other = Producer(second.url)
    second_has = list(other.embed_many([f"two {number}" for number in range(60)], texts_per_job=1))
    second_has[-1].result(60)
    # The backlog of one holds up the other by no more than what the worker had taken in.
    assert site.connection.zcard("rq:finished:embedding-bulk") < len(texts)
    assert len(workers.engine_pids()) == 1
    assert all(has_its_vector(handle, f"two {number}") for number, handle in enumerate(second_has))
    assert all(has_its_vector(handle, text) for handle, text in list(zip(first_has, texts, strict=True))[::50])


def test_while_one_server_is_away_the_other_is_served_and_its_own_jobs_end_when_it_is_back(
    site: Site, second: Server
) -> None:
    workers = at_both(site, second)
    before = [*workers.worker_pids(), *workers.engine_pids()]
    waiting = site.producer.embed("waits", bulk=True)
    waiting.result(30)
    site.server.kill()
    handles = [Producer(second.url).embed(f"text {number}") for number in range(5)]
    for handle in handles:
        handle.result(30)
    site.server.start()
    assert site.producer.embed("after").result(60).model
    assert [*workers.worker_pids(), *workers.engine_pids()] == before
    eventually(lambda: f"{site.url}: it answers again" in site.said())
    assert f"{second.url}: " not in site.said()


def test_a_worker_that_stops_puts_back_at_the_one_what_it_cannot_at_the_other(site: Site, second: Server) -> None:
    workers = at_both(site, second, a_ms=500.0)
    handles = list(Producer(second.url).embed_many([f"text {number}" for number in range(2000)], texts_per_job=64))
    eventually(lambda: any(handle.status() == "started" for handle in handles))
    site.server.freeze()
    try:
        site.producer.connection.close()
        assert workers.stop(60) == 0
    finally:
        site.server.thaw()
    assert {handle.status() for handle in handles} <= {"queued", "finished"}


def test_jobs_of_one_id_at_both_servers_each_have_their_own_result(site: Site, second: Server) -> None:
    other = Producer(second.url)
    for producer, text in ((site.producer, "one"), (other, "two")):
        producer.enqueue("embedding-bulk", "impetus_worker.jobs.embed", {"batch-of-both": {"input": text}})
    at_both(site, second, a_ms=300.0)
    for producer, text in ((site.producer, "one"), (other, "two")):
        handle = producer.handle("batch-of-both")
        assert isinstance(handle, EmbeddingHandle)
        assert has_its_vector(handle, text)


def test_a_death_is_told_to_both_servers_so_that_their_jobs_are_back_at_once(fleet: Fleet, second: Server) -> None:
    fleet.start("--simulated-a-ms", "3000", "--redis-url", second.url)
    handles = [Producer(url).embed("text") for url in (fleet.url, second.url)]
    eventually(lambda: all(handle.status() == "started" for handle in handles))
    os.kill(fleet.worker_pid(), signal.SIGKILL)
    eventually(lambda: "started" not in {handle.status() for handle in handles}, DEFAULT_LEASE_S / 2)
    for handle in handles:
        handle.result(60)
