"""An RQ job as this worker ends one: restored from what was claimed, and never from what lies in Redis by then.

It imports only allowed callbacks, its webhooks leave by a thread, and its payload is neither inflated nor written back:
RQ would do both without a bound.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rq.job import Job
from rq.serializers import JSONSerializer

from impetus_producer.contract import EMBED_FUNCTION, GENERATE_FUNCTION, ROLE_QUEUES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from redis import Redis
    from rq.job import JobStatus

    from .claims import ClaimedJob
    from .webhooks import WebhookSender


class GuardedJob(Job):
    """A callback not in `allowed` is as if there were none. Raises whatever RQ raises for a hash it cannot read."""

    def __init__(
        self, claimed: ClaimedJob, connection: Redis, worker: str, allowed: Collection[str], webhooks: WebhookSender
    ) -> None:
        super().__init__(claimed.id, connection=connection, serializer=JSONSerializer)
        self._allowed = allowed
        self._sender = webhooks
        self.restore(
            {
                **{name: value for name, value in claimed.fields.items() if name not in (b"result", b"exc_info")},
                b"data": _call_of(claimed.queue),
                b"status": b"started",
                b"worker_name": worker.encode(),
                b"started_at": _iso(claimed.claimed_at),
            }
        )

    def to_dict(self, include_meta: bool = True, include_result: bool = True) -> dict[str, Any]:
        """As RQ saves it, but for the payload, which stays what it is in Redis."""
        fields: dict[str, Any] = super().to_dict(include_meta, include_result)
        del fields["data"]
        return fields

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


def _call_of(queue: str) -> bytes:
    """In place of the payload: RQ shows the function's name in its log, and to webhooks."""
    function = GENERATE_FUNCTION if queue in ROLE_QUEUES["generation"] else EMBED_FUNCTION
    return json.dumps([function, None, [], {}]).encode()


def _iso(epoch_s: float) -> bytes:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()
