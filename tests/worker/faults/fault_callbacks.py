"""Callbacks that jobs of `test_faults.py` name."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis import Redis
    from rq.job import Job


def wait_for_go(job: Job, connection: Redis, result: Any) -> None:
    """Says that it runs, and waits for the test."""
    connection.rpush("in-callback", "one")
    connection.blpop(["go"], timeout=30)


def slow_then_broken(job: Job, connection: Redis, result: Any) -> None:
    raise RuntimeError("this callback always raises")


def take_two_seconds(job: Job, connection: Redis, result: Any) -> None:
    time.sleep(2)
