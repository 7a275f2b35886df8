"""Webhooks of batches: whoever the operator listed is told when one ends, at least once, and each time by the same id.

Signed as Standard Webhooks say (https://www.standardwebhooks.com), with OpenAI's events for bodies
(https://platform.openai.com/docs/api-reference/webhook-events), so that `openai.webhooks.unwrap` reads them. A file of
webhooks is TOML, and holds secrets:

    [[webhooks]]
    url = "https://app.example/batches"
    secrets = ["whsec_…"]            # `impetus serve-webhook URL --webhooks FILE` makes one; each of several signs
    keys = ["shop"]                  # whose batches, by the names of their keys; left out: everybody's
    events = ["batch.completed"]     # left out: all four
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import logging
import random
import secrets
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from http.client import HTTPException
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from standardwebhooks import Webhook

from impetus_producer import outgoing
from impetus_producer.batches.disk import write_whole
from impetus_producer.batches.store import NotKeptError
from impetus_producer.enqueueing.parsing import first_sentence
from impetus_producer.errors import ImpetusError, InvalidRequestError
from impetus_producer.shown import without_password

from .listed import read_listed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from impetus_producer.batches.objects import Batch, Status
    from impetus_producer.batches.store import BatchStore

Event: TypeAlias = Literal["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"]
_AGAIN_AFTER_S = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
"""After each attempt that failed, as Standard Webhooks suggest; then it is given up."""
_JITTER = 0.1
_ANSWERED_WITHIN_S = 10.0
_LOOK_EVERY_S = 1.0
_UNREADABLE_FOR_S = 60.0
_GONE = 410
_SECRET_BYTES = 32
_log = logging.getLogger(__name__)


def _url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.fragment:
        raise ValueError("must be such as https://app.example/batches")
    parts.port  # noqa: B018 - raises ValueError
    return url


def _secret(secret: str) -> str:
    try:
        size = len(base64.b64decode(secret.removeprefix("whsec_"), validate=True))
    except ValueError:
        size = 0
    if not 24 <= size <= 64:
        raise ValueError("must be whsec_ and 24 to 64 bytes in base64")
    return secret


class Receiver(BaseModel):
    """Who is told, and of what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, AfterValidator(_url)]
    secrets: Annotated[tuple[Annotated[str, AfterValidator(_secret)], ...], Field(min_length=1, max_length=4)]
    keys: frozenset[str] | None = None
    events: Annotated[frozenset[Event], Field(min_length=1)] | None = None

    @property
    def id(self) -> str:
        return hashlib.sha256(self.url.encode()).hexdigest()[:16]

    def wants(self, owner: str, status: Status) -> bool:
        whose = self.keys is None or owner in self.keys
        return whose and (self.events is None or f"batch.{status}" in self.events)

    def tell(self, batch: Batch) -> int:
        """Sends one attempt, and returns the status of the answer; raises what `outgoing.send` does."""
        now, event_id = datetime.now(UTC), f"evt_{batch.id.removeprefix('batch_')}"
        body = json.dumps({
            "id": event_id,
            "object": "event",
            "created_at": getattr(batch, f"{batch.status}_at"),
            "type": f"batch.{batch.status}",
            "data": {"id": batch.id},
        })  # fmt: skip
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "impetus",
            "webhook-id": event_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(Webhook(each).sign(event_id, now, body) for each in self.secrets),
        }
        return outgoing.send("POST", self.url, body.encode(), headers, _ANSWERED_WITHIN_S)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    webhooks: list[Receiver]


def read_receivers(path: Path) -> list[Receiver]:
    """Raises `InvalidRequestError` for a file that is none of webhooks."""
    found = read_listed(path, _File, "webhooks").webhooks
    if len({each.url for each in found}) < len(found):
        raise InvalidRequestError(f"{path}: the same url is there twice")
    return found


def new_receiver(url: str, keys: Sequence[str] = (), events: Sequence[str] = ()) -> tuple[str, str]:
    """A secret, and the lines of a file of webhooks. Raises `InvalidRequestError` for what cannot be."""
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
    named = {name: sorted(set(several)) for name, several in (("keys", keys), ("events", events)) if several}
    try:
        receiver = Receiver.model_validate({"url": url, "secrets": [secret], **named})
    except ValidationError as error:
        raise InvalidRequestError(first_sentence(error)) from None
    fields = {"url": receiver.url, "secrets": [secret], **named}
    # What these hold is written in TOML as in JSON.
    lines = (f"{name} = {json.dumps(value)}\n" for name, value in fields.items())
    return secret, "[[webhooks]]\n" + "".join(lines)


class Webhooks:
    """What is still to be told lies in the batches' folder, a file for each batch and receiver, so that it is told
    whoever dies meanwhile. Gateways that share the folder take turns, and should be given the same receivers.
    """

    def __init__(
        self, store: BatchStore, receivers: Sequence[Receiver] = (), clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._receivers = receivers
        self._clock = clock
        self._folder = store.folder / "webhooks"
        self._folder.mkdir(exist_ok=True, mode=0o700)
        self._not_before: dict[str, dict[Path, float]] = {each.id: {} for each in receivers}
        self._leaving = threading.Event()

    def note(self, batch: Batch, status: Status) -> None:
        """That there is something to be told once the batch has come to this; the same whenever it is called again."""
        for receiver in self._receivers:
            if receiver.wants(batch.owner, status):
                write_whole(self._folder / f"{batch.id}.{receiver.id}", b"{}")

    def start(self) -> None:
        """A thread for each receiver, so that none waits for another's; none outlives the process."""
        for receiver in self._receivers:
            threading.Thread(target=self._tell_all, args=(receiver,), name="webhooks", daemon=True).start()

    def stop(self) -> None:
        """What is being sent is not waited for: whoever comes next sends it again."""
        self._leaving.set()

    def _tell_all(self, receiver: Receiver) -> None:
        while not self._leaving.wait(_LOOK_EVERY_S):
            try:
                self.attempt(receiver)
            except OSError as error:
                _log.warning("What webhooks have to tell cannot be read: %s", error)

    def attempt(self, receiver: Receiver) -> None:
        """Makes an attempt at each thing that the receiver is to be told by now."""
        there = sorted(self._folder.glob(f"batch_*.{receiver.id}"))
        before = self._not_before[receiver.id]
        self._not_before[receiver.id] = waiting = {path: before.get(path, 0.0) for path in there}
        for path in there:
            if self._clock() < waiting[path] or self._leaving.is_set():
                continue
            try:
                waiting[path] = self._tell(receiver, path)
            except (OSError, ValueError) as error:  # the others are told all the same
                waiting[path] = self._clock() + _UNREADABLE_FOR_S
                _log.warning("Webhook of %s is looked at later: %s", path.stem, error)

    def _tell(self, receiver: Receiver, path: Path) -> float:
        """Makes an attempt where it is time for one; returns when to look at this again."""
        with suppress(FileNotFoundError), path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return self._clock() + _ANSWERED_WITHIN_S
            if not path.exists():
                return 0.0
            attempts, not_before = _read(file.read())
            if self._clock() < not_before:
                return not_before
            try:
                batch = self._store.batch(path.stem)
            except NotKeptError:
                batch = None
            if batch is not None and not batch.over:
                return 0.0
            if batch is None or not receiver.wants(batch.owner, batch.status) or self._told(receiver, batch, attempts):
                path.unlink()
                return 0.0
            not_before = self._clock() + _AGAIN_AFTER_S[attempts] * random.uniform(1, 1 + _JITTER)
            file.seek(0)
            file.truncate()
            file.write(json.dumps({"attempts": attempts + 1, "not_before": not_before}).encode())
            return not_before
        return 0.0

    def _told(self, receiver: Receiver, batch: Batch, attempts: int) -> bool:
        """Whether there is no more to be done about it."""
        try:
            status = receiver.tell(batch)
            why = f"it answered {status}"
        except (ImpetusError, OSError, HTTPException, ValueError) as error:
            status, why = 0, str(error)
        if 200 <= status < 300:
            return True
        ends = status == _GONE or attempts >= len(_AGAIN_AFTER_S)
        what_next = "is given up" if ends else "is tried again"
        _log.warning("Webhook of %s to %s %s: %s", batch.id, without_password(receiver.url), what_next, why)
        return ends


def _read(text: bytes) -> tuple[int, float]:
    """How many attempts there were, and when the next is due; of what a crash left half written, none and now."""
    try:
        kept = json.loads(text)
        return min(max(0, int(kept.get("attempts", 0))), len(_AGAIN_AFTER_S)), float(kept.get("not_before", 0.0))
    except (ValueError, AttributeError, TypeError):
        return 0, 0.0
