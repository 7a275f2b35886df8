"""An RQ job as this worker ends one: restored from what was claimed, and never from what lies in Redis by then.

It imports only allowed callbacks, its webhooks leave by a thread, and its payload is neither inflated nor written back:
RQ would do both without a bound.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from rq.job import Job
from rq.serializers import JSONSerializer

from impetus_producer.contract import ROLE_FUNCTIONS, role_of_queue

from .callbacks import bounded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from redis import Redis
    from rq.job import JobStatus

    from ..allowed import Allowed
    from .claims import ClaimedJob
    from .webhooks import WebhookSender


_NOT_READ = (b"data", b"result", b"exc_info")
_MOST_META_BYTES = 100_000
_MOST_BYTES = 1_000_000
"""Of every other field."""


class StoredJob(Job):
    """Any job that RQ's code reads here: what is long of it stays in Redis as it is, neither read nor written."""

    def restore(self, raw_data: Mapping[Any, Any]) -> None:
        """Raises `ValueError` for a hash that RQ should not read, and what RQ raises for one that it cannot."""
        fields = {_bytes(name): value for name, value in raw_data.items()}
        for name, value in fields.items():
            if name not in _NOT_READ and len(value) > _MOST_BYTES:
                raise ValueError(
                    f"{name[:40].decode(errors='replace')}: the field is longer than {_MOST_BYTES:,} bytes"
                )
        self._keeps_meta = len(fields.get(b"meta", b"")) <= _MOST_META_BYTES
        left_out = _NOT_READ if self._keeps_meta else (*_NOT_READ, b"meta")
        known = {name: value for name, value in fields.items() if name not in left_out}
        if b"data" in fields:
            known[b"data"] = _call_of(fields.get(b"origin", b"").decode(errors="replace"))
        super().restore(known)

    def to_dict(self, include_meta: bool = True, include_result: bool = True) -> dict[str, Any]:
        """As RQ saves it, but for what was not read."""
        fields: dict[str, Any] = super().to_dict(include_meta and self._keeps_meta, include_result)
        fields.pop("data", None)
        return fields

    _keeps_meta = True


class GuardedJob(StoredJob):
    """A callback or webhook that is not `allowed` is as if there were none. Raises whatever RQ raises for a hash that
    it cannot read.
    """

    def __init__(
        self, claimed: ClaimedJob, connection: Redis, worker: str, allowed: Allowed, webhooks: WebhookSender
    ) -> None:
        super().__init__(claimed.id, connection=connection, serializer=JSONSerializer)
        self._allowed = allowed
        self._sender = webhooks
        # Nor webhooks that nobody allowed: the job is refused for them, and RQ need not read them.
        left_out = () if allowed.allows_webhooks(claimed.fields) else (b"webhooks",)
        self.restore(
            {
                **{name: value for name, value in claimed.fields.items() if name not in left_out},
                b"data": b"",
                b"origin": claimed.queue.encode(),
                b"status": b"started",
                b"worker_name": worker.encode(),
                b"started_at": _iso(claimed.claimed_at),
            }
        )

    @property
    def success_callback(self) -> Callable[..., Any] | None:
        return self._bounded("success", partial(getattr, super(), "success_callback"))

    @property
    def failure_callback(self) -> Callable[..., Any] | None:
        return self._bounded("failure", partial(getattr, super(), "failure_callback"))

    @property
    def stopped_callback(self) -> Callable[..., Any] | None:
        return self._bounded("stopped", partial(getattr, super(), "stopped_callback"))

    @property
    def may_call(self) -> bool:
        names = (self._success_callback_name, self._failure_callback_name, self._stopped_callback_name)
        return any(name in self._allowed.callbacks for name in names)

    def _bounded(self, kind: str, load: Callable[[], Any]) -> Callable[..., Any] | None:
        """RQ imports a callback when it is first asked for it."""
        name, timeout_s = getattr(self, f"_{kind}_callback_name"), getattr(self, f"{kind}_callback_timeout")
        return bounded(name, load, timeout_s, self.connection) if name in self._allowed.callbacks else None

    def send_webhooks(self, status: str | JobStatus, *, exc_string: str | None = None) -> None:
        if self.webhooks:
            self._sender.submit(self, status, exc_string)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _call_of(queue: str) -> bytes:
    """In place of the payload: RQ shows the function's name in its log, and to webhooks."""
    return json.dumps([ROLE_FUNCTIONS[role_of_queue(queue)], None, [], {}]).encode()


def _iso(epoch_s: float) -> bytes:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()
