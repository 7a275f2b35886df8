"""Who is there, by the server's clock alone; and what is said of keys that are not what they should be."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from impetus_producer import contract
from impetus_producer.cli.main import cli
from impetus_producer.watching.fleet import MAX_QUEUES, MAX_WORKERS, read_fleet

if TYPE_CHECKING:
    from redis import Redis

    from impetus_producer.watching.fleet import WorkerState

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


def status_of(redis_url: str, *options: str) -> str:
    result = CliRunner().invoke(cli, ["status", *options, "--redis-url", redis_url])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_of_queues_and_workers_without_end_some_are_shown_and_the_rest_is_counted(
    connection: Redis, redis_url: str
) -> None:
    ours = {name for names in contract.ROLE_QUEUES.values() for name in names}
    connection.sadd("rq:queues", *(f"rq:queue:{number}" for number in range(20_000)))
    connection.sadd("rq:queues", *(f"rq:queue:{name}" for name in (*ours, contract.STANDBY_QUEUE)))
    connection.sadd("rq:workers", *(f"rq:worker:{number}" for number in range(20_000)))
    fleet = read_fleet(connection)
    names = {queue.name for queue in fleet.queues}
    assert ours < names
    assert len(fleet.queues) <= MAX_QUEUES
    # Whether those that were not drawn are the contract's own is not known.
    assert 20_000 <= len(names - ours) + fleet.queues_left_out <= 20_000 + len(ours) + 1
    assert fleet.workers_left_out == 20_000 - MAX_WORKERS
    text = status_of(redis_url)
    assert "more queues, which are not shown" in text
    assert "and 19,000 more names of workers, which are not shown" in text
    assert "No worker is listening" not in text
    assert len(text) < 200_000
    said = json.loads(status_of(redis_url, "--json"))
    assert said["queues_left_out"] > 18_000
    assert said["workers_left_out"] == 19_000
    assert said["unattended"] == []


def test_where_nothing_is_left_out_all_are_shown(connection: Redis, redis_url: str) -> None:
    connection.sadd("rq:queues", *(f"rq:queue:{number}" for number in range(MAX_QUEUES - 6)))
    fleet = read_fleet(connection)
    assert (len(fleet.queues), fleet.queues_left_out, fleet.workers_left_out) == (MAX_QUEUES, 0, 0)
    assert "not shown" not in status_of(redis_url)
    connection.sadd("rq:queues", "rq:queue:one-more")
    assert read_fleet(connection).queues_left_out == 1


def test_names_without_end_are_shown_as_far_as_they_help(connection: Redis, redis_url: str) -> None:
    connection.sadd("rq:queues", "rq:queue:" + "q" * 3_000_000, "rq:queue:" + "\x1b" * 3_000)
    worker = "w" * 1_000_000
    connection.sadd("rq:workers", f"rq:worker:{worker}")
    connection.hset(f"rq:worker:{worker}", mapping={"queues": "x," * 500_000, "state": "s" * 1_000_000})
    connection.set(contract.WORKER_RECORD_KEY + worker, json.dumps(RECORD | {"engine_deaths": 3, "serving": False}))
    connection.pexpire(contract.WORKER_RECORD_KEY + worker, 700_000)
    text = status_of(redis_url)
    assert "q" * 90 in text
    assert "its engine died 3 times" in text
    assert max(map(len, text.splitlines())) < 1000


@pytest.mark.parametrize(
    "more",
    [
        {"ttl_s": 1e308 * 10},
        {"ttl_s": float("nan")},
        {"ttl_s": -1},
        {"engine_deaths": 10**4000},
        {"note": "x" * 100_000},
    ],
    ids=lambda more: next(iter(more)),
)
def test_a_record_that_no_worker_writes_is_none(connection: Redis, redis_url: str, more: dict[str, Any]) -> None:
    register(connection, "", left_ms=700_000)
    connection.set(f"{contract.WORKER_RECORD_KEY}w", json.dumps(RECORD | more), px=700_000)
    (worker,) = read_fleet(connection).workers
    assert not worker.alive
    json.loads(status_of(redis_url, "--json"))


@pytest.mark.parametrize("heartbeat", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "\ud83d", "1" * 5000])
def test_a_heartbeat_at_the_ends_of_time_is_no_error(connection: Redis, heartbeat: str) -> None:
    assert register(connection, heartbeat.encode(errors="replace").decode()).name == "w"
