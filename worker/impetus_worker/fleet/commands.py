"""RQ's commands, heard by pub/sub in a thread of its own.

They only make things quick: what must happen is written down in Redis, and housekeeping finds it. So a server that
refuses pub/sub is said once and no more. A connection that fell silent is found by asking it for an answer.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import TimeoutError as RedisTimeoutError
from rq.command import parse_payload

from impetus_producer.servers.answers import is_denied

from ..companions.companion import Companion
from ..companions.link import PASSING, Link
from ..inbox import Command

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

_PING_EVERY_S = 5.0
_ANSWER_S = 10.0
_REFUSED_WAIT_S = 60.0
_MOST_BYTES = 10_000
"""More than any command takes."""
_log = logging.getLogger(__name__)


class Commands(Companion):
    """Tells a `Command` for each message to the worker's channel."""

    def __init__(self, link: Link, worker: str, tell: Callable[[object], None]) -> None:
        super().__init__("commands", tell)
        self._link = link
        self._channel = f"rq:pubsub:{worker}"

    def run(self) -> None:
        while not self.stopped.is_set():
            try:
                self._listen(self._link.connection)
            except PASSING as error:
                if is_denied(error):
                    _log.warning(
                        "Redis: %s; stop-job and its likes are not heard, cancelling works all the same", error
                    )
                    self.stopped.wait(_REFUSED_WAIT_S)
                else:
                    self.stopped.wait(self._link.failed(error))

    def _listen(self, connection: Redis) -> None:
        with connection.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
            pubsub.subscribe(self._channel)
            heard_at = asked_at = time.monotonic()
            while not self.stopped.is_set():
                message = pubsub.get_message(timeout=1.0)
                now = time.monotonic()
                if message is not None:
                    heard_at = now
                    self._link.worked()
                    if message["type"] == "message":
                        self._hear(message)
                if now - heard_at > _ANSWER_S + _PING_EVERY_S and asked_at > heard_at:
                    raise RedisTimeoutError("the connection for commands fell silent")
                if now - asked_at > _PING_EVERY_S:
                    asked_at = now
                    pubsub.ping()

    def _hear(self, message: dict[str, Any]) -> None:
        payload: object = None
        if len(message.get("data") or b"") <= _MOST_BYTES:
            with suppress(ValueError, RecursionError):
                payload = parse_payload(message)
        if not isinstance(payload, dict) or not isinstance(payload.get("job_id", ""), str):
            _log.warning("ignoring a command that is none: %.200r", message.get("data"))
            return
        self.tell(Command(str(payload.get("command"))[:40], payload.get("job_id", "")))
