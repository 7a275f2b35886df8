"""Jobs cancelled, deleted and stopped while they run; workers suspended, stopped and killed. See `sides`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from rq import Retry
from rq.command import send_stop_job_command
from rq.serializers import JSONSerializer
from rq.suspension import resume, suspend

from impetus_worker.leases.claims import Claims
from tests.patience import eventually
from tests.worker.promises.sides import (
    HANG,
    ON_FAILURE,
    ON_STOPPED,
    ON_SUCCESS,
    RAISES,
    Ours,
    Side,
    burst,
    our_worker,
    stock_process,
    while_running,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import RedisServer
    from tests.worker.promises.comparing import Both

# RQ's own time limit of a job takes the signal that pytest-timeout would use.
pytestmark = [pytest.mark.system, pytest.mark.timeout(180, method="thread")]


def test_a_job_cancelled_in_the_queue_does_not_run(both: Both) -> None:
    def scenario(side: Side) -> Any:
        with side.held():
            side.enqueue("job", on_success=ON_SUCCESS).cancel()
            side.enqueue("next")
        side.until_status("next", "finished")
        return side.seen("job")

    seen = both.agree(scenario)
    assert seen["calls"] == []
    assert list(seen["registries"]) == ["canceled:embedding"]


def cancel(side: Side) -> None:
    side.job("job").cancel()


def delete(side: Side) -> None:
    side.job("job").delete()


def test_a_job_cancelled_while_it_runs_stays_cancelled(both: Both) -> None:
    """Stock RQ finishes it all the same and leaves it in two registries. A job of ours has one ending."""
    for side in (both.stock, both.ours):
        while_running(side, "job", partial(cancel, side))
    assert both.stock.status("job") == "finished"
    assert both.stock.registries("job").keys() == {"canceled:embedding", "finished:embedding"}
    assert both.ours.status("job") == "canceled"
    assert both.ours.registries("job").keys() == {"canceled:embedding"}
    assert both.ours.results("job") == []


def test_a_job_deleted_while_it_runs_stays_deleted(both: Both) -> None:
    """Stock RQ writes it anew, with its result. Whoever deletes a job does not want it back."""
    for side in (both.stock, both.ours):
        while_running(side, "job", partial(delete, side))
    assert both.stock.status("job") == "finished"
    assert both.ours.status("job") is None
    assert both.ours.registries("job") == {}


def test_meta_that_others_save_while_a_job_runs_is_kept(both: Both) -> None:
    def scenario(side: Side) -> Any:
        def save_meta() -> None:
            job = side.job(label)
            job.meta["progress"] = 50
            job.save_meta()

        metas = []
        for label, options in (("short", {}), ("by-rq", {"on_success": ON_SUCCESS})):
            while_running(side, label, save_meta, meta={"who": "me"}, **options)
            metas.append(side.job(label).get_meta())
        return metas

    assert both.agree(scenario) == [{"who": "me", "progress": 50}] * 2


def test_a_stopped_job_is_stopped_and_its_callback_called(both: Both) -> None:
    """Compared with RQ's forking worker: a `SimpleWorker` cannot stop a job."""

    def scenario(side: Side) -> Any:
        text = "a" if isinstance(side, Ours) else HANG
        with side.engine_held():
            parent = side.enqueue("job", text, retry=Retry(max=2), on_stopped=ON_STOPPED, on_failure=ON_FAILURE)
            side.enqueue("child", depends_on=parent)
            eventually(lambda: side.status("job") == "started")
            send_stop_job_command(side.connection, parent.id, serializer=JSONSerializer)
            eventually(lambda: side.status("job") == "stopped")
        side.enqueue("next")
        eventually(lambda: side.status("next") == "finished")
        seen = side.seen("job")
        # RQ's two processes overwrite each other's times.
        for name in ("data", "description", "ended_at", "last_heartbeat", "worker_name"):
            del seen["fields"][name]
        return {**seen, "results": [result[0] for result in seen["results"]]}, list(side.registries("child"))

    with stock_process(both.stock.url, "rq.Worker"):
        seen, child = both.agree(scenario)
    assert seen["calls"] == ["stopped"]
    assert list(seen["registries"]) == ["failed:embedding"]
    assert child == ["deferred:embedding"]


def test_a_stopped_callback_that_raises_changes_nothing(both: Both) -> None:
    """As RQ's forking worker has it: the error is logged and the job is stopped."""
    side = both.ours
    with side.engine_held():
        side.enqueue("job", on_stopped=RAISES)
        eventually(lambda: side.status("job") == "started")
        send_stop_job_command(side.connection, side.id("job"), serializer=JSONSerializer)
        side.until_status("job", "stopped")
    assert side.calls("job") == ["raised"]
    assert list(side.registries("job")) == ["failed:embedding"]


def test_suspended_workers_start_nothing_until_they_are_resumed(both: Both) -> None:
    def scenario(side: Side) -> Any:
        suspend(side.connection)
        side.enqueue("job")
        if isinstance(side, Ours):
            eventually(lambda: side.connection.hget(side.worker_key(), "state") == b"suspended")
        else:
            side.until(lambda: True)
        before = side.seen("job")
        resume(side.connection)
        side.until_status("job", "finished")
        return before, side.seen("job")

    before, _ = both.agree(scenario)
    assert before["position"] == 0


def begun(side: Side) -> bool:
    return bool(side.connection.zcard("rq:finished:embedding") >= 5)


def test_a_warm_shutdown_finishes_what_runs_and_leaves_the_rest_in_its_order(
    both: Both, redis_server: RedisServer, tmp_path: Path
) -> None:
    """How many jobs were begun differs, since ours looks ahead; what was not begun is as it was on both sides."""
    labels = [f"job{number}" for number in range(600)]
    slowly = ("--max-batch-texts", "1", "--simulated-a-ms", "20")
    with our_worker(redis_server, 7, tmp_path / "log", *slowly) as ours:
        for side in (both.stock, ours):
            side.prefix = both.stock.prefix
            side.enqueue_together(*(partial(side.enqueue, label, ttl=600) for label in labels))
            if side is ours:
                eventually(partial(begun, side))
                assert ours.running.stop() == 0
            else:
                with stock_process(side.url, "rq.SimpleWorker") as process:
                    eventually(partial(begun, side))
                assert process.returncode == 0
            statuses = [side.status(label) for label in labels]
            done = statuses.count("finished")
            assert 5 <= done < 600
            assert statuses == ["finished"] * done + ["queued"] * (600 - done)
            waiting: Any = side.connection.lrange("rq:queue:embedding", 0, -1)
            order = [job_id.decode().removeprefix(side.prefix) for job_id in waiting]
            # Stock RQ loses the job that it has popped and not begun when the signal comes: queued, and in no list.
            lost = 1 if side is both.stock and order == labels[done + 1 :] else 0
            assert order == labels[done + lost :]
            assert side.connection.zcard("rq:wip:embedding") == 0
            assert side.connection.smembers("rq:workers") == set()


def test_a_dead_workers_job_runs_again_without_using_up_its_retry_or_calling_on_failure(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """RQ's cleanup of abandoned jobs does both, and fails a job that has no `Retry`."""
    with burst(redis_server, tmp_path / "log") as side:
        side.enqueue("job", retry=Retry(max=1), on_failure=ON_FAILURE, on_success=ON_SUCCESS)
        (claimed,) = Claims("dead", 20).claim(["embedding"], 1, 10**9).run(side.connection).jobs
        side.connection.zadd("impetus:leases:embedding", {claimed.id: 1})  # as time would
        assert side.status("job") == "started"
    assert side.status("job") == "finished"
    assert side.fields("job")["retries_left"] == "1"
    assert side.calls("job") == ["success dict"]
    assert list(side.registries("job")) == ["finished:embedding"]
