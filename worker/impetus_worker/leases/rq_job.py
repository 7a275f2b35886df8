"""An RQ job as this worker ends one: it imports only allowed callbacks, and its webhooks leave by a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rq.job import Job
from rq.serializers import JSONSerializer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from redis import Redis
    from rq.job import JobStatus

    from .webhooks import WebhookSender


class GuardedJob(Job):
    """RQ's job, restored from the hash as it was claimed. A callback not in `allowed` is as if there were none."""

    def __init__(self, job_id: str, connection: Redis, allowed: Collection[str], webhooks: WebhookSender) -> None:
        super().__init__(job_id, connection=connection, serializer=JSONSerializer)
        self._allowed = allowed
        self._sender = webhooks

    @property
    def success_callback(self) -> Callable[..., Any] | None:
        return super().success_callback if self._success_callback_name in self._allowed else None

    @property
    def failure_callback(self) -> Callable[..., Any] | None:
        return super().failure_callback if self._failure_callback_name in self._allowed else None

    @property
    def stopped_callback(self) -> Callable[..., Any] | None:
        return super().stopped_callback if self._stopped_callback_name in self._allowed else None

    def send_webhooks(self, status: str | JobStatus, *, exc_string: str | None = None) -> None:
        if self.webhooks:
            self._sender.submit(self, status, exc_string)
