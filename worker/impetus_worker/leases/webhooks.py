"""RQ's webhooks, sent from a few threads of their own: a slow receiver holds up no job.

A job chooses the address, so a request goes to hosts alone that the operator named.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from http.client import HTTPException
from typing import TYPE_CHECKING

from impetus_producer import outgoing

from ..errors import InvalidRequestError

if TYPE_CHECKING:
    from rq.job import Job, JobStatus
    from rq.webhook import Webhook

    from ..allowed import Allowed

_THREADS = 4
_MAX_WAITING = 1000
_MAX_S = 10.0
"""From the lookup of the name to the answer's first lines."""


class WebhookSender:
    """Sends about in the order of submission, a few at a time. Past a thousand that wait, what comes is dropped."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._waiting: queue.Queue[tuple[Job, Webhook, str | None]] = queue.Queue(_MAX_WAITING)
        self._threads: list[threading.Thread] = []
        self._log = logging.getLogger(__name__)

    def submit(self, job: Job, status: str | JobStatus, exc_string: str | None) -> None:
        """Takes those of the job's webhooks that are for this status."""
        if not self._threads:
            # Daemons: a receiver that hangs does not keep the worker from ending.
            self._threads = [threading.Thread(target=self._send, name="webhooks", daemon=True) for _ in range(_THREADS)]
            for thread in self._threads:
                thread.start()
        try:
            for webhook in job.webhooks:
                if webhook.job_status == status:
                    self._waiting.put_nowait((job, webhook, exc_string))
        except queue.Full:
            self._log.warning("job %s: its webhook is dropped, as %d wait to be sent", job.id, _MAX_WAITING)

    def _send(self) -> None:
        while True:
            job, webhook, exc_string = self._waiting.get()
            try:
                self._allowed.check_url(webhook.url)
                payload = json.dumps(webhook.get_payload(job, exc_string=exc_string)).encode()
                if (status := send(webhook, payload)) >= 300:
                    self._log.warning("job %s: the receiver of its webhook answered %d", job.id, status)
            except (InvalidRequestError, OSError, HTTPException, ValueError) as error:
                self._log.warning("job %s: its webhook was not sent: %s", job.id, error)
            except Exception:  # noqa: BLE001 - whatever one holds, the thread has others to send
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


def send(webhook: Webhook, payload: bytes) -> int:
    """Sends one request as RQ would, and returns the status of the answer; raises what `outgoing.send` does."""
    headers, body = dict(webhook.headers or {}), None
    if webhook.method == "POST":
        headers, body = {"Content-Type": "application/json", **headers}, payload
    return outgoing.send(webhook.method, webhook.url, body, headers, min(float(webhook.timeout), _MAX_S))
