"""What jobs may ask of a worker beyond their result, as its operator said: callbacks, and requests to hosts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from impetus_producer.shown import printable

from .errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_CALLBACK_FIELDS = (b"success_callback_name", b"failure_callback_name", b"stopped_callback_name")
_ASKING_FIELDS = (*_CALLBACK_FIELDS, b"webhooks")
_PORTS = {"http": 80, "https": 443}
_MAX_WEBHOOKS_BYTES = 65_536
"""Of what a job says about its webhooks: addresses and headers."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Nothing, unless told otherwise.

    `callbacks`: the names of functions that jobs may have imported and called. `webhooks`: where jobs may have requests
    sent to by http or https, each as `host`, at the scheme's own port, or as `host:port`."""

    callbacks: Collection[str] = ()
    webhooks: Collection[str] = ()

    def check(self, fields: Mapping[bytes, bytes]) -> None:
        """Raises `InvalidRequestError` for a job, given by RQ's hash, that asks for more."""
        if fields.keys().isdisjoint(_ASKING_FIELDS):
            return
        for name in _CALLBACK_FIELDS:
            callback = fields.get(name, b"").decode(errors="replace")
            if callback and callback not in self.callbacks:
                raise InvalidRequestError(
                    f"{name.decode()}: this worker was not told to run {callback!r:.200}: "
                    "name it with --allow-callbacks"
                )
        self._check_webhooks(fields)

    def allows_webhooks(self, fields: Mapping[bytes, bytes]) -> bool:
        try:
            self._check_webhooks(fields)
        except InvalidRequestError:
            return False
        return True

    def _check_webhooks(self, fields: Mapping[bytes, bytes]) -> None:
        for url in _webhook_urls(fields.get(b"webhooks")):
            self.check_url(url)

    def check_url(self, url: str) -> None:
        """Raises `InvalidRequestError` for an address that no request may be sent to."""
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").lower()
            port = parts.port
        except ValueError:
            raise InvalidRequestError(f"webhooks: {printable(url)!r:.200} is no address") from None
        if parts.scheme not in _PORTS:
            raise InvalidRequestError(f"webhooks: {printable(url)!r:.200} is neither http nor https")
        own_port = _PORTS[parts.scheme]
        written = f"[{host}]" if ":" in host else host
        names = {f"{written}:{port or own_port}"}
        if port in (None, own_port):
            names |= {host, written}
        if names.isdisjoint(self.webhooks):
            raise InvalidRequestError(
                f"webhooks: this worker was not told to send requests to {printable(host)!r:.200}, port "
                f"{port or own_port}: name it with --allow-webhooks, as HOST:PORT for a port that is not the scheme's"
            )


def _webhook_urls(field: bytes | None) -> list[str]:
    if not field:
        return []
    try:
        if len(field) > _MAX_WEBHOOKS_BYTES:
            raise ValueError
        webhooks = json.loads(field)
        if not isinstance(webhooks, list):
            raise TypeError
        return [str(webhook["url"]) for webhook in webhooks]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidRequestError("webhooks: these are not RQ's webhooks, or are too many") from None


NOTHING = Allowed()
