"""Defects that comparing found. See `sides`."""

from __future__ import annotations

import json
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from rq import Callback, Queue
from rq.command import send_stop_job_command
from rq.group import Group
from rq.rate_limit import RateLimit
from rq.serializers import JSONSerializer

from tests.patience import eventually
from tests.worker.promises.comparing import Both, differences
from tests.worker.promises.sides import (
    EMBED,
    ERROR,
    HANG,
    ON_FAILURE,
    ON_SUCCESS,
    Side,
    burst,
    our_worker,
    stock_process,
    while_running,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import RedisServer

# RQ's own time limit of a job takes the signal that pytest-timeout would use.
pytestmark = [pytest.mark.system, pytest.mark.timeout(180, method="thread")]


def test_a_stopped_job_that_hangs_the_engine_holds_up_no_other(redis_server: RedisServer, tmp_path: Path) -> None:
    with our_worker(redis_server, 8, tmp_path / "log") as side:
        side.start_test("test-")
        side.enqueue("before")  # so that it is known what a batch costs
        side.until_status("before", "finished")
        side.enqueue("job", HANG)
        eventually(lambda: side.status("job") == "started")
        side.enqueue("timely", queue="embedding-bulk")  # what comes after it was in the engine when this was claimed
        eventually(lambda: side.status("timely") == "started")
        send_stop_job_command(side.connection, side.id("job"), serializer=JSONSerializer)
        side.until_status("job", "stopped")
        side.enqueue("next", job_timeout=8)
        eventually(lambda: side.status("next") in ("finished", "failed"))
        assert side.status("next") == "finished"


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_a_job_with_callbacks_that_ends_while_it_runs_leaves_the_workers_books(both: Both, end: str) -> None:
    side = both.ours
    while_running(side, "job", lambda: getattr(side.job("job"), end)(), on_success=ON_SUCCESS)
    assert side.calls("job") == []
    executions: Any = side.connection.smembers(f"{side.worker_key()}:executions")
    assert [member for member in executions if member.decode().startswith(side.id("job"))] == []
    assert [name for name in side.keys("job") if "execution" in name] == []


def test_a_rate_limited_job_that_is_cancelled_while_it_runs_lets_the_next_in(both: Both) -> None:
    def scenario(side: Side) -> Any:
        limit = RateLimit(side.id("limit"), 1)

        def meddle() -> None:
            side.enqueue("waiting", rate_limit=limit)
            side.job("job").cancel()

        while_running(side, "job", meddle, rate_limit=limit)
        side.until_status("waiting", "finished")
        return side.seen("waiting")

    both.agree(scenario)


def test_a_dependent_without_callbacks_leaves_what_rqs_own_leaves(both: Both) -> None:
    def scenario(side: Side) -> Any:
        with side.held():
            side.enqueue("child", depends_on=side.enqueue("parent"))
            side.enqueue("failing", ERROR, depends_on=side.job("parent"), failure_ttl=100)
        side.until_status("child", "finished")
        side.until_status("failing", "failed")
        return side.seen("child"), side.seen("failing")

    both.agree(scenario)


def test_a_result_that_is_kept_for_ever_outlives_the_reason_of_an_earlier_failure(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", ERROR, failure_ttl=60, result_ttl=-1)
        side.until_status("job", "failed")
        mended = zlib.compress(json.dumps([EMBED, None, [{"input": "a"}], {}]).encode())
        side.connection.hset(f"rq:job:{side.id('job')}", "data", mended)
        side.job("job").requeue()
        side.until_status("job", "finished")
        return side.seen("job")

    assert both.agree(scenario)["keys"]["rq:results:job"] == "for ever"


def test_a_failure_callback_on_the_list_is_called_for_a_bad_request_too(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.queue().enqueue(EMBED, {"inputs": 1}, job_id=side.id("job"), on_failure=ON_FAILURE)
        side.until_status("job", "failed")
        return side.seen("job")

    assert both.agree(scenario)["calls"] == ["failure InvalidRequestError InvalidRequestError NoneType"]


def test_a_job_refused_for_its_callback_keeps_the_callbacks_name(both: Both) -> None:
    """So that it is not run without it when it is requeued at a worker that allows it."""
    side = both.ours
    name = "tests.worker.whole.callbacks.note_failure"
    side.enqueue("job", on_failure=Callback(name), on_success=ON_SUCCESS)
    side.until_status("job", "failed")
    assert side.fields("job")["failure_callback_name"] == name
    assert side.fields("job")["success_callback_name"] == ON_SUCCESS.name


def test_a_job_that_was_put_back_keeps_its_ttl(redis_server: RedisServer, tmp_path: Path) -> None:
    with our_worker(redis_server, 8, tmp_path / "log", "--simulated-a-ms", "1000", "--max-batch-texts", "1") as side:
        side.start_test("test-")
        labels = [f"job{number}" for number in range(5)]
        side.enqueue_together(*(partial(side.enqueue, label, ttl=600) for label in labels))
        eventually(lambda: side.status("job4") == "started")
        side.running.stop()
        assert side.status("job4") == "queued"
        assert side.keys("job4") == {"rq:job:job4": 600}


def test_maintenance_frees_leaked_slots_and_forgets_empty_groups(
    both: Both, redis_server: RedisServer, tmp_path: Path
) -> None:
    def prepare(side: Side) -> None:
        with side.held():
            for label in ("gone", "waiting"):
                side.enqueue(label, rate_limit=RateLimit("limit", 1))
        side.connection.delete(f"rq:job:{side.id('gone')}")
        Group.create(side.connection, "group").enqueue_many(
            side.queue(), [Queue.prepare_data(EMBED, ({"input": "a"},), job_id=side.id("member"), result_ttl=0)]
        )
        side.connection.delete(f"rq:job:{side.id('member')}")
        side.connection.zadd("rq:finished:embedding", {"long-gone": 1})
        side.connection.hset(f"rq:job:{side.id('ready')}", mapping=_ready_job())
        side.connection.zadd("rq:ready:embedding", {side.id("ready"): 1})

    def seen(side: Side) -> Any:
        labels = ("gone", "waiting", "member", "ready")
        return {
            "statuses": {label: side.status(label) for label in labels},
            "groups": side.connection.smembers("rq:groups"),
            "slots": side.connection.zrange("rq:rl:limit:allowed", 0, -1),
            "long gone": side.connection.zscore("rq:finished:embedding", "long-gone"),
        }

    prepare(both.stock)
    both.stock.work()
    with burst(redis_server, tmp_path / "log") as ours:
        ours.prefix = both.stock.prefix
        prepare(ours)
    different = "\n".join(differences(seen(ours), seen(both.stock)))
    assert not different, different


def _ready_job() -> dict[Any, Any]:
    data = zlib.compress(json.dumps([EMBED, None, [{"input": "a"}], {}]).encode())
    return {"data": data, "status": "ready_to_enqueue", "origin": "embedding", "timeout": "180"}


def test_stock_rq_can_time_out_a_job_of_ours_of_many_texts(both: Both) -> None:
    """`jobs.embed` in stock RQ's process: the engine takes RQ's timeout for an error of the device, and goes on."""
    side = both.stock
    with stock_process(side.url, "rq.SimpleWorker") as process:
        try:
            side.enqueue("first")  # loads the engine: that, too, RQ may interrupt
            eventually(lambda: side.status("first") == "finished", limit_s=60)
            side.queue().enqueue(EMBED, {"input": [HANG, "b"]}, job_id=side.id("stuck"), job_timeout=1)
            eventually(lambda: side.status("stuck") == "failed", limit_s=60)
            assert "Timeout" in side.reason("stuck")
        finally:
            process.kill()


@pytest.mark.parametrize("registry", ["scheduled", "ready"])
def test_a_job_that_rq_cannot_read_holds_up_no_worker_and_no_other_job(
    redis_server: RedisServer, tmp_path: Path, registry: str
) -> None:
    with burst(redis_server, tmp_path / "log") as side:
        side.connection.hset(f"rq:job:{side.id('bad')}", mapping={**_ready_job(), "created_at": b"\xff"})
        side.connection.zadd(f"rq:{registry}:embedding", {side.id("bad"): 1, side.id("beside"): 1})
        side.connection.hset(f"rq:job:{side.id('beside')}", mapping=_ready_job())
        side.enqueue("good")
    assert side.status("good") == "finished"
    assert side.status("beside") == "finished", "an unreadable job keeps the others in its registry for ever"
    assert "starting it again" not in side.running.log
