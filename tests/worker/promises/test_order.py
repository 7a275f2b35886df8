"""Dependents, groups, schedules, repeats, limits: which job runs, and when. See `sides`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from rq import Queue, Repeat, Retry
from rq.exceptions import DuplicateJobError
from rq.group import Group
from rq.job import Dependency
from rq.rate_limit import RateLimit, RateLimitRegistry

from tests.worker.promises.sides import EMBED, ERROR, ON_FAILURE, ON_SUCCESS, Side

if TYPE_CHECKING:
    from tests.worker.promises.comparing import Both

# RQ's own time limit of a job takes the signal that pytest-timeout would use.
pytestmark = [pytest.mark.system, pytest.mark.timeout(180, method="thread")]


def test_a_dependent_runs_after_its_parent_and_leaves_what_rqs_own_leaves(both: Both) -> None:
    def scenario(side: Side) -> Any:
        with side.held():
            parent = side.enqueue("parent")
            child = side.enqueue("child", depends_on=parent, on_success=ON_SUCCESS, result_ttl=100)
            waiting = side.seen("child")
            side.enqueue("grandchild", depends_on=child, on_success=ON_SUCCESS)
        side.until_status("grandchild", "finished")
        return waiting, [side.seen(label) for label in ("parent", "child", "grandchild")], side.counters()

    waiting, _, counters = both.agree(scenario)
    assert list(waiting["registries"]) == ["deferred:embedding"]
    assert counters == (3, 0, True)


def test_the_dependents_of_a_failed_job_wait_unless_they_allow_failure(both: Both) -> None:
    def scenario(side: Side) -> Any:
        with side.held():
            parent = side.enqueue("parent", ERROR)
            bad = side.queue().enqueue(EMBED, {"inputs": 1}, job_id=side.id("invalid"))
            for label, job in (("parent", parent), ("invalid", bad)):
                side.enqueue(f"strict-{label}", depends_on=job)
                side.enqueue(
                    f"lenient-{label}", depends_on=Dependency(jobs=[job], allow_failure=True), on_success=ON_SUCCESS
                )
        for label in ("parent", "invalid"):
            side.until_status(f"lenient-{label}", "finished")
            assert side.status(label) == "failed"
        labels = ("parent", "strict-parent", "lenient-parent", "invalid", "strict-invalid", "lenient-invalid")
        return {label: side.seen(label) for label in labels}, side.counters()

    seen, _ = both.agree(scenario)
    assert list(seen["strict-parent"]["registries"]) == ["deferred:embedding"]


def test_a_dependent_of_two_waits_for_both_and_may_join_at_the_front(both: Both) -> None:
    def scenario(side: Side) -> Any:
        with side.held():
            first, second = side.enqueue("first"), side.enqueue("second", retry=Retry(max=1))
            both_of_them = Dependency(jobs=[first, second], enqueue_at_front=True)
            side.enqueue("child", depends_on=both_of_them, on_success=ON_SUCCESS)
        side.until_status("child", "finished")
        late = side.enqueue("late", depends_on=[side.job("first"), side.job("second")], on_success=ON_SUCCESS)
        side.until_status("late", "finished")
        return [side.seen(label) for label in ("first", "second", "child")], len(late.dependency_ids)

    both.agree(scenario)


def test_a_dependent_of_a_stopped_or_cancelled_parent_never_runs(both: Both) -> None:
    def scenario(side: Side) -> Any:
        with side.held():
            parent = side.enqueue("parent")
            side.enqueue("child", depends_on=parent)
            side.enqueue("wanted", depends_on=parent)
            parent.cancel()
        side.enqueue("next")
        side.until_status("next", "finished")
        return side.seen("parent"), side.seen("child")

    parent, child = both.agree(scenario)
    assert list(parent["registries"]) == ["canceled:embedding"]
    assert list(child["registries"]) == ["deferred:embedding"]


def test_a_group_knows_its_jobs_until_they_are_gone(both: Both) -> None:
    def scenario(side: Side) -> Any:
        group = Group.create(side.connection, side.id("group"))
        options: dict[str, dict[str, Any]] = {"good": {}, "bad": {}, "gone": {"result_ttl": 0}}
        group.enqueue_many(
            side.queue(),
            [
                Queue.prepare_data(
                    EMBED, ({"input": ERROR if label == "bad" else "a"},), job_id=side.id(label), **options[label]
                )
                for label in options
            ],
        )
        for label, status in (("good", "finished"), ("bad", "failed"), ("gone", None)):
            side.until_status(label, status)
        members = sorted(job.id.removeprefix(side.prefix) for job in group.get_jobs())
        return members, side.seen("good"), side.seen("bad"), side.seen("gone"), side.counters()

    members, *_ = both.agree(scenario)
    assert members == ["bad", "good"]


def test_a_job_at_the_front_overtakes_those_that_wait(both: Both) -> None:
    def scenario(side: Side) -> list[str]:
        side.enqueue_together(
            *(partial(side.enqueue, label, on_success=ON_SUCCESS) for label in ("first", "second")),
            partial(side.enqueue, "hasty", on_success=ON_SUCCESS, at_front=True),
            partial(side.enqueue, "bulk", queue="embedding-bulk", on_success=ON_SUCCESS),
        )
        side.until(lambda: len(side.calls_in_order()) == 4)
        return side.calls_in_order()

    assert both.agree(scenario) == ["hasty", "first", "second", "bulk"]


def test_a_scheduled_job_waits_for_its_time(both: Both) -> None:
    def scenario(side: Side) -> Any:
        request = {"input": "a"}
        queue = side.queue()
        queue.enqueue_in(timedelta(seconds=60), EMBED, request, job_id=side.id("in"))
        queue.enqueue_at(datetime.now(UTC) + timedelta(seconds=90), EMBED, request, job_id=side.id("at"))
        queue.enqueue_in(timedelta(seconds=60), EMBED, request, job_id=side.id("cancelled")).cancel()
        side.enqueue("next")
        side.until_status("next", "finished")
        labels = ("in", "at", "cancelled")
        waiting = [side.seen(label) for label in labels]
        side.finish_scheduled("in", "finished")
        return waiting, [side.seen(label) for label in labels], side.counters()

    (waiting, at, cancelled), (done, *_), _ = both.agree(scenario)
    assert waiting["registries"] == {"scheduled:embedding": 60}
    assert at["registries"] == {"scheduled:embedding": 90}
    assert list(cancelled["registries"]) == ["canceled:embedding"]
    assert list(done["registries"]) == ["finished:embedding"]


def test_a_repeat_runs_again_at_once_or_after_its_interval(both: Both) -> None:
    def scenario(side: Side) -> Any:
        side.enqueue("often", repeat=Repeat(times=2), on_success=ON_SUCCESS)
        side.until(lambda: len(side.calls("often")) == 3 and side.status("often") == "finished")
        side.enqueue("later", repeat=Repeat(times=1, interval=60))
        side.until_scheduled("later")
        between = side.seen("later")
        side.finish_scheduled("later", "finished")
        return side.seen("often"), between, side.seen("later"), side.counters()

    often, between, later, counters = both.agree(scenario)
    assert [result[0] for result in often["results"]] == ["SUCCESSFUL"] * 3
    assert between["registries"].keys() == {"scheduled:embedding", "finished:embedding"}
    assert len(later["results"]) == 2
    assert counters == (5, 0, True)


def test_a_unique_job_is_refused_while_another_of_its_id_is_kept(both: Both) -> None:
    def scenario(side: Side) -> Any:
        refused = []

        def attempt() -> None:
            try:
                side.enqueue("job", unique=True, result_ttl=100)
                refused.append(False)
            except DuplicateJobError:
                refused.append(True)

        with side.held():
            attempt()
            attempt()
        side.until_status("job", "finished")
        attempt()
        seen = side.seen("job")
        side.job("job").delete()
        attempt()
        side.until_status("job", "finished")
        return refused, seen, side.seen("job")

    refused, *_ = both.agree(scenario)
    assert refused == [False, True, True, False]


def test_a_rate_limit_lets_the_next_job_in_whatever_became_of_the_last(both: Both) -> None:
    def scenario(side: Side) -> Any:
        limit = RateLimit(side.id("limit"), 1)
        with side.held():
            side.enqueue("good", rate_limit=limit, on_success=ON_SUCCESS)
            side.enqueue("bad", ERROR, rate_limit=limit, retry=Retry(max=1), on_failure=ON_FAILURE)
            side.queue().enqueue(EMBED, {"inputs": 1}, job_id=side.id("invalid"), rate_limit=limit)
            side.enqueue("discarded", rate_limit=limit, result_ttl=0, on_success=ON_SUCCESS)
            side.enqueue("last", rate_limit=limit, on_success=ON_SUCCESS)
            waiting = [side.status(label) for label in ("good", "bad", "invalid", "discarded", "last")]
        side.until_status("last", "finished")
        registry = RateLimitRegistry(side.id("limit"), side.connection)
        side.until(lambda: registry.get_allowed_job_count() == 0)
        seen = [side.seen(label) for label in ("good", "bad", "invalid", "discarded", "last")]
        return waiting, seen, registry.get_rate_limited_job_count(), side.calls_in_order(), side.counters()

    waiting, _, left, order, _ = both.agree(scenario)
    assert waiting == ["queued"] + ["rate_limited"] * 4
    assert left == 0
    assert order == ["good", "bad", "bad", "discarded", "last"]
