"""Cancelling a job: at once while it waits, by a wish that its worker fulfils while it runs.

Does to a job that waits what RQ's own classes do, in one step. Source of the layout: rq 3.0, `Job.cancel`,
`RateLimitRegistry.cancel`. Dependents stay deferred, as they do there.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from . import jobs
from .contract import CANCEL_TTL_S
from .errors import JobNotFoundError, ResultTimeoutError
from .scripts import CANCEL_SCRIPT
from .servers.answers import Trouble, trouble

if TYPE_CHECKING:
    from redis import Redis

    from .servers.patience import Patience

_POLL_S = 0.5


def cancel(connection: Redis, patience: Patience, job_id: str, timeout_s: float) -> bool:
    """Cancels a job that waits, or has one that runs stopped and waits until it is. False when it had ended before.

    Raises `ResultTimeoutError` where it still runs after `timeout_s`; the wish stands. `JobNotFoundError` if there is
    none.
    """
    deadline = time.monotonic() + timeout_s
    name, told = jobs.new_id(), ""
    wished = False
    while True:
        answer = patience.ask(connection, partial(_step, connection, job_id, name), deadline=deadline)
        if answer is None and not wished:
            raise JobNotFoundError(f"there is no job {job_id}, or its time to live ran out")
        if answer is None or answer[0] in ("finished", "failed"):
            return False
        status, worker = answer
        if status in ("canceled", "stopped"):
            return wished
        if status != "started":
            return True
        wished = True
        if worker != told:
            told = worker
            patience.ask(connection, partial(_tell, connection, worker, job_id), deadline=deadline)
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise ResultTimeoutError(
                f"job {job_id} was told to stop and has not yet: its worker does so as soon as it can, look later"
            )
        wait = partial(_await_end, connection, job_id, min(left_s, _POLL_S))
        patience.ask(connection, wait, deadline=deadline)


def _await_end(connection: Redis, job_id: str, limit_s: float) -> None:
    """What ends a job leaves an entry here. Where it came before we looked, the limit is what it costs."""
    from redis.exceptions import ResponseError

    try:
        connection.xread({jobs.results_key(job_id): "$"}, block=max(1, int(1000 * limit_s)))
    except ResponseError as error:
        # Of another type: no end leaves an entry there.
        if trouble(error) is not Trouble.DATA:
            raise
        time.sleep(limit_s)


def _step(connection: Redis, job_id: str, name: str) -> tuple[str, str] | None:
    now = datetime.now(UTC).strftime(jobs.TIME_FORMAT)
    script = connection.register_script(CANCEL_SCRIPT)
    answer: Any = script(args=[job_id, jobs.cancel_key(job_id), CANCEL_TTL_S, now, name])
    if not answer:
        return None
    status, worker, *_ = [each.decode(errors="replace") for each in answer] + [""]
    return status, worker


def _tell(connection: Redis, worker: str, job_id: str) -> None:
    """RQ's own command. It only makes it quick: where we may not publish, the wish is enough."""
    from redis.exceptions import NoPermissionError

    if worker:
        with suppress(NoPermissionError):
            connection.publish(f"rq:pubsub:{worker}", json.dumps({"command": "stop-job", "job_id": job_id}))
