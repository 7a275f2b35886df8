"""Cancelling a job: at once while it waits, by a wish that its worker fulfils while it runs.

Does to a job that waits what RQ's own classes do, in one step. Source of the layout: rq 3.0, `Job.cancel`,
`RateLimitRegistry.cancel`. Dependents stay deferred, as they do there.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..contract import CANCEL_TTL_S
from ..enqueueing import jobs
from ..enqueueing.scripts import CANCEL_SCRIPT
from ..errors import JobNotFoundError, ResultTimeoutError, ServerConfigurationError, ServerDataError
from .results import named
from .steps import Listen, Pause, Question

if TYPE_CHECKING:
    from .steps import Talk

_POLL_S = 0.5


def cancel(job_id: str, timeout_s: float) -> Talk[bool]:
    """Cancels a job that waits, or has one that runs stopped and waits until it is. False when it had ended before.

    Raises `ResultTimeoutError` where it still runs after `timeout_s`; the wish stands. `JobNotFoundError` if there is
    none.
    """
    deadline = time.monotonic() + timeout_s
    name, told = jobs.new_id(), ""
    # What ends a job leaves an entry here.
    listen = Listen(job_id, {jobs.results_key(job_id): "0-0"})
    wished = False
    while True:
        with named(job_id):
            answer = yield _step(job_id, name, deadline)
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
        if worker and worker != told:
            told = worker
            # It only makes it quick: where we may not publish, the wish is enough.
            with suppress(ServerConfigurationError):
                yield _tell(worker, job_id, deadline)
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise ResultTimeoutError(
                f"job {job_id} was told to stop and has not yet: its worker does so as soon as it can, look later"
            )
        listen.deadline = time.monotonic() + min(left_s, _POLL_S)
        try:
            yield listen
        except ServerDataError:
            # Of another type: no end leaves an entry there.
            yield Pause(min(left_s, _POLL_S))


def _step(job_id: str, name: str, deadline: float) -> Question[tuple[str, str] | None]:
    def ask(client: Any) -> Any:
        now = datetime.now(UTC).strftime(jobs.TIME_FORMAT)
        return client.register_script(CANCEL_SCRIPT)(args=[job_id, jobs.cancel_key(job_id), CANCEL_TTL_S, now, name])

    def read(answer: Any) -> tuple[str, str] | None:
        if not answer:
            return None
        status, worker, *_ = [each.decode(errors="replace") for each in answer] + [""]
        return status, worker

    return Question(ask, read, deadline)


def _tell(worker: str, job_id: str, deadline: float) -> Question[Any]:
    """RQ's own command."""
    command = json.dumps({"command": "stop-job", "job_id": job_id})
    return Question(lambda client: client.publish(f"rq:pubsub:{worker}", command), deadline=deadline)
