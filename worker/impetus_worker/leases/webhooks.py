"""RQ's webhooks, sent from a few threads of their own: a slow receiver holds up no job."""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import TYPE_CHECKING

from rq.job import Job

if TYPE_CHECKING:
    from rq.job import JobStatus

_THREADS = 4
_MAX_WAITING = 1000


class WebhookSender:
    """Sends about in the order of submission, a few at a time. Past a thousand that wait, what comes is dropped."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Job, str | JobStatus, str | None]] = queue.Queue(_MAX_WAITING)
        self._threads: list[threading.Thread] = []
        self._log = logging.getLogger(__name__)

    def submit(self, job: Job, status: str | JobStatus, exc_string: str | None) -> None:
        if not self._threads:
            # Daemons: a receiver that hangs does not keep the worker from ending.
            self._threads = [threading.Thread(target=self._send, name="webhooks", daemon=True) for _ in range(_THREADS)]
            for thread in self._threads:
                thread.start()
        try:
            self._waiting.put_nowait((job, status, exc_string))
        except queue.Full:
            self._log.warning("job %s: its webhook is dropped, as %d wait to be sent", job.id, _MAX_WAITING)

    def _send(self) -> None:
        while True:
            job, status, exc_string = self._waiting.get()
            try:
                Job.send_webhooks(job, status, exc_string=exc_string)
            except Exception:  # noqa: BLE001 - RQ logs what goes wrong with the sending; the rest must not go unseen
                self._log.error("job %s: its webhook could not be sent", job.id, exc_info=True)
            finally:
                self._waiting.task_done()

    def close(self, patience_s: float) -> None:
        """Gives those that wait so long, then drops them."""
        deadline = time.monotonic() + patience_s
        with self._waiting.all_tasks_done:
            while self._waiting.unfinished_tasks and (left_s := deadline - time.monotonic()) > 0:
                self._waiting.all_tasks_done.wait(left_s)
        if self._waiting.unfinished_tasks:
            self._log.warning("%d webhooks were not sent", self._waiting.unfinished_tasks)
