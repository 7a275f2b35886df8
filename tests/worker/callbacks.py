"""Callbacks that tests name in jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis import Redis
    from rq.job import Job


def note_success(job: Job, connection: Redis, result: Any) -> None:
    connection.set("noted", job.id)


def note_failure(job: Job, connection: Redis, *exception: Any) -> None:
    connection.set("noted", "a failure callback ran that nobody allowed")
