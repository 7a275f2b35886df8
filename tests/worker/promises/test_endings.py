"""Results, failures, retries, and how long they are kept. See `sides`."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from rq import Retry
from rq.suspension import resume

from tests.patience import eventually
from tests.worker.promises.comparing import Both, Near
from tests.worker.promises.sides import EMBED, ERROR, HANG, ON_FAILURE, SUSPENDS, Side

# RQ's own time limit of a job takes the signal that pytest-timeout would use.
pytestmark = [pytest.mark.system, pytest.mark.timeout(180, method="thread")]


def test_a_finished_job_leaves_what_rqs_own_leaves(both: Both) -> None:
    def scenario(side: Side) -> Any:
        job = side.enqueue("job", description="three words long", meta={"who": "me"})
        side.until_status("job", "finished")
        value = side.job("job").return_value()
        assert value is not None
        return side.seen("job"), value["embeddings"], job.id == side.id("job"), side.counters()

    seen, _, kept_its_id, counters = both.agree(scenario)
    assert kept_its_id
    assert counters == (1, 0, True)
    assert seen["fields"]["description"] == "three words long"
    assert seen["keys"] == {"rq:job:job": 500, "rq:results:job": 500}


def test_a_failed_job_leaves_what_rqs_own_leaves(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", ERROR)
        side.until_status("job", "failed")
        return side.seen("job"), side.counters()

    seen, counters = both.agree(scenario)
    assert counters == (0, 1, True)
    assert seen["results"] == [
        (
            "FAILED",
            None,
            "impetus_worker.errors.InferenceError: simulated: RuntimeError: a simulated error of the device",
        )
    ]


@pytest.mark.parametrize("result_ttl", [-1, 0, 100])
def test_a_result_is_kept_for_its_result_ttl(both: Both, result_ttl: int) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", result_ttl=result_ttl)
        side.enqueue("next")
        side.until_status("next", "finished")
        side.until_status("job", None if result_ttl == 0 else "finished")
        return side.seen("job"), side.counters()

    seen, counters = both.agree(scenario)
    assert counters[0] == 2
    assert seen["keys"].get("rq:results:job") == {-1: "for ever", 0: None, 100: Near(100)}[result_ttl]


@pytest.mark.parametrize("failure_ttl", [-1, 0, 100])
def test_a_failed_job_is_kept_for_its_failure_ttl(both: Both, failure_ttl: int) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", ERROR, failure_ttl=failure_ttl)
        side.until(lambda: "failed:embedding" in side.registries("job"))
        return side.seen("job"), side.counters()

    seen, counters = both.agree(scenario)
    assert counters[1] == 1
    assert seen["keys"].get("rq:job:job") == {-1: "for ever", 0: None, 100: Near(100)}[failure_ttl]


def test_a_job_whose_ttl_ran_out_in_the_queue_is_passed_over(both: Both) -> None:
    def scenario(side: Side) -> Any:
        with side.held():
            side.enqueue("late", ttl=60)
            side.enqueue("timely", ttl=60)
            assert side.keys("late") == {"rq:job:late": 60}
            side.connection.pexpire(f"rq:job:{side.id('late')}", 1)
            eventually(lambda: side.status("late") is None)
        side.until_status("timely", "finished")
        return side.seen("late"), side.seen("timely")

    late, timely = both.agree(scenario)
    assert late["keys"] == {}
    assert timely["keys"]["rq:job:timely"] == 500


def test_a_job_is_retried_as_often_as_its_retry_says(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", ERROR, retry=Retry(max=2), on_failure=ON_FAILURE)
        side.until_status("job", "failed")
        return side.fields("job"), side.results("job"), side.registries("job"), len(side.calls("job")), side.counters()

    fields, results, _, calls, counters = both.agree(scenario)
    assert fields["retries_left"] == "0"
    assert len(results) == 1
    assert calls == 3
    assert counters == (0, 3, True)


def test_a_retry_with_intervals_waits_in_the_scheduled_registry_each_time(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", ERROR, retry=Retry(max=2, interval=[60, 120]))
        side.until_scheduled("job")
        first = side.seen("job")
        side.finish_scheduled("job", "scheduled")
        side.until(lambda: side.fields("job")["retries_left"] == "0" and side.status("job") == "scheduled")
        second = side.seen("job")
        side.finish_scheduled("job", "failed")
        return first, second, side.seen("job"), side.counters()

    first, second, last, counters = both.agree(scenario)
    assert first["registries"] == {"scheduled:embedding": 60}
    assert second["registries"] == {"scheduled:embedding": 120}
    assert list(last["registries"]) == ["failed:embedding"]
    assert counters == (0, 3, True)


@pytest.mark.parametrize("at_front", [True, False])
def test_a_retry_joins_the_front_of_its_queue_if_it_says_so(both: Both, at_front: bool) -> None:
    def scenario(side: Side) -> list[str]:
        another = side.queue().create_job(EMBED, ({"input": "a"},), job_id=side.id("another"))
        another.save()
        retry, meta = Retry(max=1, enqueue_at_front=at_front), {"another": another.id}
        side.enqueue("job", ERROR, retry=retry, meta=meta, on_failure=SUSPENDS)
        side.until(lambda: side.connection.llen("rq:queue:embedding") == 2)
        order: Any = side.connection.lrange("rq:queue:embedding", 0, -1)
        resume(side.connection)
        side.until_status("another", "finished")
        side.until_status("job", "failed")
        return [job_id.decode().removeprefix(side.prefix) for job_id in order]

    assert both.agree(scenario) == (["job", "another"] if at_front else ["another", "job"])


def test_a_request_that_can_never_succeed_is_not_retried(both: Both) -> None:
    """Stock RQ tries again whatever was raised. Ours knows which errors are permanent, and spares the device."""
    for side in (both.stock, both.ours):
        side.queue().enqueue(EMBED, {"inputs": "a"}, job_id=side.id("job"), retry=Retry(max=2, interval=60))
    both.stock.until_status("job", "scheduled")
    both.ours.until_status("job", "failed")
    assert both.ours.reason("job").startswith("impetus_producer.errors.InvalidRequestError: inputs: there is no such")
    assert list(both.ours.registries("job")) == ["failed:embedding"]
    assert both.ours.counters() == (0, 1, True)


def test_a_failed_job_that_is_requeued_runs_again(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("job", ERROR, failure_ttl=60, result_ttl=100)
        side.until_status("job", "failed")
        mended = zlib.compress(json.dumps([EMBED, None, [{"input": "a"}], {}]).encode())
        side.connection.hset(f"rq:job:{side.id('job')}", "data", mended)
        side.requeue("job")
        side.until_status("job", "finished")
        return side.seen("job"), side.counters()

    seen, counters = both.agree(scenario)
    assert [result[0] for result in seen["results"]] == ["SUCCESSFUL", "FAILED"]
    assert counters == (1, 1, True)


def test_a_timeout_fails_its_job_and_counts_as_a_failure_that_is_retried(both: Both) -> None:
    """The reasons are worded differently: RQ interrupts Python, ours the engine."""

    def scenario(side: Side) -> Any:
        side.enqueue("stuck", HANG, job_timeout=1, retry=Retry(max=1, interval=60))
        side.until_scheduled("stuck")
        stuck = side.seen("stuck")
        side.enqueue("next")
        side.until_status("next", "finished")
        return stuck, side.seen("next"), side.counters()

    stuck, _, counters = both.agree(scenario)
    assert stuck["fields"]["timeout"] == "1"
    assert stuck["registries"] == {"scheduled:embedding": 60}
    assert counters == (1, 1, True)
