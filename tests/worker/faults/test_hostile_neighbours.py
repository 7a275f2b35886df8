"""What lies beside a job, and not in it: its dependents, scheduled jobs, registries, channels, RQ's books. Workers read
these, and anybody may write them."""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rq import Queue
from rq.serializers import JSONSerializer

from impetus_producer.contract import EMBED_FUNCTION
from tests.patience import eventually

from .test_hostile_jobs import MEGABYTE, deflated

if TYPE_CHECKING:
    from collections.abc import Callable

    from .breakable import Workers
    from .site import Site

pytestmark = pytest.mark.system
AT = "2026-01-01T00:00:00.000000Z"
LIMITED = {"rate_limit_key": "k", "rate_limit_concurrency": "1"}
DATA = json.dumps([EMBED_FUNCTION, None, [{"input": "x"}], {}])


@cache
def bomb() -> bytes:
    return deflated(b"", b" " * MEGABYTE, 700)


def stored(site: Site, job_id: str, status: str, **fields: Any) -> None:
    """A job in the books of nobody."""
    made: Any = {"status": status, "origin": "embedding", "created_at": AT, "timeout": 60, "data": DATA, **fields}
    site.connection.hset(f"rq:job:{job_id}", mapping=made)


def queued(site: Site, job_id: str, **fields: Any) -> str:
    stored(site, job_id, "queued", **fields)
    site.connection.rpush("rq:queue:embedding", job_id)
    return job_id


def memory_mb(workers: Workers) -> float:
    """The most that a process of these workers took at any time."""

    def most(pid: int) -> float:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))

    return max(most(pid) for pid in workers.worker_pids())


def a_dependent_that_inflates_without_end(site: Site) -> str:
    stored(site, "bomb", "deferred", data=bomb(), **LIMITED)
    site.connection.sadd("rq:job:good:dependents", "bomb")
    site.connection.sadd("rq:job::bomb:dependencies", "good")
    return queued(site, "good")


def a_scheduled_job_that_inflates_without_end(site: Site) -> str:
    stored(site, "bomb", "scheduled", data=bomb(), **LIMITED)
    site.connection.zadd("rq:scheduled:embedding", {"bomb": 1})
    return queued(site, "good")


def a_dependent_that_depends_on_nothing(site: Site) -> str:
    for name in ("one", "two"):
        stored(site, f"waits-for-{name}", "deferred", **LIMITED)
        site.connection.sadd(f"rq:job:{name}:dependents", f"waits-for-{name}")
        queued(site, name)
    return queued(site, "good", retries_left=1)


def many_dependents_of_many_jobs_that_wait_for_many_more(site: Site) -> str:
    with site.connection.pipeline(transaction=False) as pipeline:
        for number in range(100):
            pipeline.hset(f"rq:job:d{number}", mapping={"status": "deferred", "origin": "embedding"})
            pipeline.sadd(f"rq:job::d{number}:dependencies", *(f"o{other}" for other in range(100)))
        pipeline.hset("rq:job:o5", "status", "started")
        for number in range(300):
            pipeline.sadd(f"rq:job:p{number}:dependents", *(f"d{each}" for each in range(100)))
            pipeline.hset(f"rq:job:p{number}", mapping={"status": "queued", "origin": "embedding", "data": DATA})
            pipeline.rpush("rq:queue:embedding", f"p{number}")
        pipeline.execute()
    return queued(site, "good")


def half_a_million_workers_in_rqs_books(site: Site) -> str:
    for start in range(0, 500_000, 50_000):
        site.connection.sadd("rq:workers", *(f"rq:worker:z{number}" for number in range(start, start + 50_000)))
    return queued(site, "good")


def thousands_of_rate_limits_and_a_job_that_is_due(site: Site) -> str:
    site.connection.sadd("rq:rl-keys", *(f"k{number}" for number in range(60_000)))
    stored(site, "good", "scheduled")
    site.connection.zadd("rq:scheduled:embedding", {"good": 1})
    return "good"


@pytest.mark.parametrize(
    "plant",
    [
        a_dependent_that_inflates_without_end,
        a_scheduled_job_that_inflates_without_end,
        a_dependent_that_depends_on_nothing,
        many_dependents_of_many_jobs_that_wait_for_many_more,
        half_a_million_workers_in_rqs_books,
        thousands_of_rate_limits_and_a_job_that_is_due,
    ],
    ids=lambda plant: plant.__name__,
)
def test_what_lies_beside_jobs_costs_neither_the_worker_nor_other_jobs(
    site: Site, plant: Callable[[Site], str]
) -> None:
    workers = site.start()
    pids = set(workers.worker_pids())
    good = plant(site)
    queue = Queue("embedding", connection=site.connection, serializer=JSONSerializer)
    others = [queue.enqueue(EMBED_FUNCTION, {"input": "x"}).id for _ in range(20)]
    eventually(lambda: {site.status(each) for each in [good, *others]} == {"finished"}, 15)
    if plant is a_dependent_that_depends_on_nothing:
        eventually(lambda: {site.status(each) for each in ("one", "two")} == {"finished"}, 15)
    assert set(workers.worker_pids()) == pids
    assert memory_mb(workers) < 600
    assert "ended (exit status" not in site.said()


@pytest.mark.parametrize("said", ["[" * 100_000, "{", "7", '{"command": ' + "9" * 5000 + "}", "\x00", "x" * 3_000_000])
def test_whatever_is_said_on_its_channel_a_worker_lives(site: Site, said: str) -> None:
    workers = site.start()
    pids = set(workers.worker_pids())
    for name in site.names():
        assert site.connection.publish(name.replace("rq:worker:", "rq:pubsub:"), said) == 1
    handle = site.producer.embed(["x"])
    handle.result(timeout_s=30)
    eventually(lambda: "ignoring a command that is none" in site.said())
    assert set(workers.worker_pids()) == pids


def test_a_job_that_rq_cannot_read_and_that_is_taken_away_while_it_runs_ends_nobody(site: Site) -> None:
    workers = site.start(a_ms=3000)
    pids = set(workers.worker_pids())
    queued(site, "bad", **LIMITED)
    eventually(lambda: site.status("bad") == "started")
    site.connection.hset("rq:job:bad", mapping={"status": "canceled", "created_at": "garbage"})
    queued(site, "worse", **{**LIMITED, "created_at": "garbage"})
    eventually(lambda: site.status("worse") == "started")
    site.connection.hset("rq:job:worse", "status", "canceled")
    site.producer.embed(["x"]).result(timeout_s=60)
    eventually(lambda: "what waits for its end" in site.said(), 30)
    assert set(workers.worker_pids()) == pids


def test_a_payload_that_rq_has_enqueued_again_is_what_it_was(site: Site) -> None:
    """RQ writes the jobs that it enqueues: here without the payload, which stays what a producer wrote."""
    site.start()
    packed = zlib.compress(DATA.encode())
    stored(site, "later", "scheduled", data=packed, meta='{"mine": 1}', **LIMITED)
    site.connection.zadd("rq:scheduled:embedding", {"later": 1})
    eventually(lambda: site.status("later") == "finished", 30)
    assert site.connection.hget("rq:job:later", "data") == packed
    assert json.loads(site.connection.hget("rq:job:later", "meta") or "null") == {"mine": 1}
