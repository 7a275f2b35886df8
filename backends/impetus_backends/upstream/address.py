"""Where the other server is, and connections to it. Nothing of the environment decides about them: no proxies."""

from __future__ import annotations

import http.client
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..errors import BackendUnavailableError

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """Of a server that speaks OpenAI's API; as text, its URL, in which there is nothing secret."""

    scheme: str
    host: str
    port: int
    path: str
    """What comes before `/chat/completions`: mostly `/v1`."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """One that has not connected yet."""
        if self.scheme == "http":
            return http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(self.host, self.port, timeout=timeout_s, context=context)


def read_address(url: str) -> Address:
    """Raises `BackendUnavailableError`, whose sentence does not repeat the URL: there may be a password in it."""
    wanted = "give the upstream as http://HOST:PORT/v1"
    if not url.isascii() or not url.isprintable() or " " in url:
        raise BackendUnavailableError(f"the upstream's URL holds characters that no URL has: {wanted}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise BackendUnavailableError(f"the upstream's URL has no host and port to be understood: {wanted}") from None
    if "@" in url:
        raise BackendUnavailableError(
            "the upstream's URL may hold no user and no password: its key goes into the variable IMPETUS_UPSTREAM_KEY"
        )
    if parts.scheme not in _PORTS or not parts.hostname:
        raise BackendUnavailableError(f"the upstream's URL begins neither with http:// nor with https://: {wanted}")
    if parts.query or parts.fragment:
        raise BackendUnavailableError(
            f"the upstream's URL ends with its path, and '?' and '#' are not for it: {wanted}"
        )
    return Address(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], parts.path.rstrip("/"))
