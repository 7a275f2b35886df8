"""Callbacks that tests name in jobs."""

from __future__ import annotations

import os
from typing import Any

from redis import Redis
from rq.job import Job
from rq.suspension import suspend


def note_success(job: Job, connection: Redis, result: Any) -> None:
    connection.set("noted", job.id)


def note_failure(job: Job, connection: Redis, *exception: Any) -> None:
    connection.set("noted", "a failure callback ran that nobody allowed")


def record_success(job: Job, connection: Redis, *arguments: Any) -> None:
    """Appends what it was called with to two lists: the job's own, and one of all calls in their order."""
    _record("success", job, connection, arguments)


def record_failure(job: Job, connection: Redis, *arguments: Any) -> None:
    _record("failure", job, connection, arguments)


def record_stopped(job: Job, connection: Redis, *arguments: Any) -> None:
    _record("stopped", job, connection, arguments)


def raise_an_error(job: Job, connection: Redis, *arguments: Any) -> None:
    _record("raised", job, connection, arguments)
    raise ValueError("a callback raised")


def raise_that_a_file_is_missing(job: Job, connection: Redis, *arguments: Any) -> None:
    _record("raised", job, connection, arguments)
    raise FileNotFoundError("no such file")


def suspend_and_queue_another(job: Job, connection: Redis, *arguments: Any) -> None:
    """Leaves the queue to be looked at, as it is after the job's first failure."""
    if connection.set(f"calls:{job.id}:suspended", 1, nx=True):
        suspend(connection)
        connection.rpush(f"rq:queue:{job.origin}", job.meta["another"])


def _record(kind: str, job: Job, connection: Redis, arguments: tuple[Any, ...]) -> None:
    assert isinstance(job, Job)
    assert isinstance(connection, Redis)
    names = [argument.__name__ if isinstance(argument, type) else type(argument).__name__ for argument in arguments]
    connection.rpush(f"calls:{job.id}", " ".join([kind, *names]))
    connection.rpush("calls", job.id)


def end_the_process(job: Job, connection: Redis, *arguments: Any) -> None:
    """As a library that crashes does."""
    connection.incr("ended")
    os._exit(1)
