"""Who is there, by the server's clock alone; and what is said of keys that are not what they should be."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from impetus_producer import contract
from impetus_producer.cli.main import cli
from impetus_producer.fleet import read_fleet

if TYPE_CHECKING:
    from redis import Redis

    from impetus_producer.fleet import WorkerState

RECORD = {"name": "w", "role": "embedding", "model": "m", "backend": "simulated", "device": "none", "ttl_s": 1000}


def register(connection: Redis, heartbeat: str, left_ms: int | None = None) -> WorkerState:
    connection.sadd("rq:workers", "rq:worker:w")
    connection.hset("rq:worker:w", mapping={"queues": "embedding", "state": "idle", "last_heartbeat": heartbeat})
    if left_ms is not None:
        connection.set(f"{contract.WORKER_RECORD_KEY}w", json.dumps(RECORD), px=left_ms)
    (worker,) = read_fleet(connection).workers
    return worker


@pytest.fixture
def yesterday(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's clock, not the server's, is two days late."""
    import time

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 2 * 24 * 3600)


@pytest.mark.parametrize("heartbeat", ["2020-01-01T00:00:00.000000Z", "2090-01-01T00:00:00.000000Z", "", "soon"])
def test_a_worker_that_renews_its_record_is_alive_whatever_any_clock_says(
    connection: Redis, yesterday: None, heartbeat: str
) -> None:
    worker = register(connection, heartbeat, left_ms=700_000)
    assert worker.alive
    assert worker.silent_s == pytest.approx(300, abs=60)


def test_a_stock_worker_is_judged_by_the_servers_time(connection: Redis, yesterday: None) -> None:
    now: Any = connection.time()
    for age_s, alive in ((10, True), (100, False)):
        for form in ("%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%dT%H:%M:%S.%f"):
            worker = register(connection, datetime.fromtimestamp(now[0] - age_s, UTC).strftime(form))
            assert worker.alive is alive
            assert worker.silent_s == pytest.approx(age_s, abs=40)


def test_a_record_is_shown_if_workers_go_by_it_and_believed_only_then(connection: Redis, redis_url: str) -> None:
    connection.sadd("rq:workers", "rq:worker:w")
    connection.set(f"{contract.WORKER_RECORD_KEY}w", json.dumps(RECORD), px=700_000)
    (worker,) = read_fleet(connection).workers
    assert (worker.name, worker.alive, worker.device) == ("w", True, "none (simulated)")
    assert "none (simulated)" in CliRunner().invoke(cli, ["status", "--redis-url", redis_url]).output
    connection.hset("rq:worker:w", "death", "2026-01-01T00:00:00.000000Z")
    assert [each.alive for each in read_fleet(connection).workers] == [True]
    connection.persist(f"{contract.WORKER_RECORD_KEY}w")
    assert read_fleet(connection).workers == ()
    connection.hdel("rq:worker:w", "death")
    connection.hset("rq:worker:w", "queues", "embedding")
    assert [(each.alive, each.device) for each in read_fleet(connection).workers] == [(False, "")]


@pytest.mark.parametrize(
    "key",
    [
        *("rq:queue:embedding", "rq:wip:embedding", "rq:finished:embedding", "rq:failed:embedding"),
        *("rq:queues", "rq:workers", "rq:worker:w", "rq:worker:w:executions", "impetus:worker:w", "rq:suspended"),
    ],
)
def test_a_key_of_a_wrong_type_is_shown_as_unknown(connection: Redis, redis_url: str, key: str) -> None:
    register(connection, "", left_ms=700_000)
    connection.delete(key)
    if key in ("impetus:worker:w",):
        connection.rpush(key, "x")
    else:
        connection.set(key, "x")
    for options in ((), ("--json",)):
        result = CliRunner().invoke(cli, ["status", *options, "--redis-url", redis_url])
        assert result.exit_code == 0, result.output
    fleet = read_fleet(connection)
    if key.endswith("embedding"):
        assert None in (
            *(fleet.queues[0].waiting, fleet.queues[0].running, fleet.queues[0].finished, fleet.queues[0].failed),
        )
        text = CliRunner().invoke(cli, ["status", "--redis-url", redis_url]).output
        assert "?" in next(line for line in text.splitlines() if line.startswith("embedding "))


def test_status_says_whether_the_server_is_fit(redis_url: str) -> None:
    text = CliRunner().invoke(cli, ["status", "--redis-url", redis_url]).output
    assert "warn: what is in the server is lost when it ends" in text
    said = json.loads(CliRunner().invoke(cli, ["status", "--json", "--redis-url", redis_url]).stdout)
    assert said["findings"][0]["level"] == "warn"
