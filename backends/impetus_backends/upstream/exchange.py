"""One request on its way, in a thread of its own: the connection, and the stream of chunks that comes back."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from .events import chunks_of
from .failures import UpstreamError, is_permanent, said_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .address import Address

_LONGEST_ERROR = 64 * 2**10
_FIRST_WAIT_S, _MAX_WAIT_S = 0.25, 2.0
"""Between two tries to connect."""
_MORE_TRIES = 3
_BUSY = (429, 503)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server is waited for, in seconds."""

    connect_s: float = 10.0
    away_s: float = 30.0
    """A server that takes no connection is tried again for so long: one that restarts costs no jobs."""
    first_s: float = 600.0
    """Until an answer begins. A server may be loading the model, or have others to answer first."""
    between_s: float = 120.0
    """Between two pieces of an answer."""


class _ResetError(ConnectionResetError):
    """The connection was reset before any answer came."""


class _BusyError(UpstreamError):
    """The server has begun nothing. `after_s`: when it wants to be asked again, if it says so."""

    def __init__(self, message: str, *, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s


Told: TypeAlias = "dict[str, Any] | UpstreamError | None"
"""A chunk of the answer; or how it ended: badly, or (None) well."""


def bearer(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def without_key(said: str, key: str | None) -> str:
    """Some servers repeat the key that they do not like."""
    return said.replace(key, "***") if key else said


class Exchange:
    """Tells `tell` each chunk of the answer, and then once how it ended; after `cancel` that no longer matters."""

    def __init__(
        self,
        address: Address,
        path: str,
        body: dict[str, Any],
        tell: Callable[[Exchange, Told], None],
        *,
        key: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._address = address
        self._path = address.path + path
        self._body = body
        self._tell = tell
        self._key = key
        self._patience = patience or Patience()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        """While it is certain that it is ours: for whoever cancels."""
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upstream", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def cancel(self) -> None:
        """Closes the connection at once, so that the server stops; does not wait for anything."""
        with self._lock:
            self._cancelled.set()
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    # Not TLS's own way to say good-bye, which another thread's reading would have to hear.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        ended: UpstreamError | None = None
        try:
            for chunk in self._chunks():
                self._tell(self, chunk)
        except UpstreamError as error:
            ended = error
        except TimeoutError:
            ended = UpstreamError(f"the upstream at {self._address} fell silent in the middle of a request")
        except (OSError, http.client.HTTPException, ValueError) as error:
            ended = UpstreamError(f"the connection to the upstream at {self._address} broke ({_named(error)})")
        except Exception as error:  # noqa: BLE001 - a fault of ours ends this request, and is no silence
            ended = unreadable(error)
        self._tell(self, ended)

    def _chunks(self) -> Iterator[dict[str, Any]]:
        """Those of one answer. None has come where a server is busy, and where it resets the connection, as one does
        whose queue of them is full: then it is asked again, a few times only, for it may be the request that it dies
        of."""
        until, wait_s = time.monotonic() + self._patience.away_s, _FIRST_WAIT_S
        for _ in range(_MORE_TRIES):
            try:
                yield from self._chunks_of_one_try()
            except (_ResetError, _BusyError) as error:
                pause_s = max(wait_s, error.after_s if isinstance(error, _BusyError) else 0.0)
                if time.monotonic() + pause_s > until or self._cancelled.wait(pause_s):
                    raise
                wait_s = min(2 * wait_s, _MAX_WAIT_S)
            else:
                return
        yield from self._chunks_of_one_try()

    def _chunks_of_one_try(self) -> Iterator[dict[str, Any]]:
        connection = self._connect()
        if connection is None:
            return
        try:
            own = connection.sock
            own.settimeout(self._patience.first_s)
            with self._asked(connection) as response:
                if not 200 <= response.status < 300:
                    raise self._refused(response)
                if packed := _packed(response):
                    raise UpstreamError(f"the upstream packs its answer ({packed}), which it was not asked to do")
                for chunk in chunks_of(response):
                    yield chunk
                    if not response.isclosed():
                        own.settimeout(self._patience.between_s)
        finally:
            with self._lock:
                self._socket = None
            connection.close()

    def _asked(self, connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", "Connection": "close"}
        body, broken = json.dumps(self._body).encode(), False
        try:
            connection.request("POST", self._path, body, headers | bearer(self._key))
        except (ConnectionResetError, BrokenPipeError):
            broken = True  # it may have answered before it had heard all, such as 413
        try:
            return connection.getresponse()
        except (ConnectionResetError, BrokenPipeError) as error:
            if isinstance(error, http.client.RemoteDisconnected) and not broken:
                raise
            raise _ResetError(*error.args) from None

    def _connect(self) -> http.client.HTTPConnection | None:
        """None where nobody wants it any more."""
        until, wait_s = time.monotonic() + self._patience.away_s, _FIRST_WAIT_S
        while not self._cancelled.is_set():
            connection = self._address.connection(self._patience.connect_s)
            try:
                connection.connect()
            except OSError as error:
                connection.close()
                if isinstance(error, ssl.SSLError) or time.monotonic() >= until:
                    raise UpstreamError(
                        f"the upstream at {self._address} takes no connection ({_named(error)})"
                    ) from None
                self._cancelled.wait(wait_s)
                wait_s = min(2 * wait_s, _MAX_WAIT_S)
                continue
            with self._lock:
                if not self._cancelled.is_set():
                    self._socket = connection.sock
                    return connection
            connection.close()
        return None

    def _refused(self, response: http.client.HTTPResponse) -> UpstreamError:
        said = said_by(response.headers.get("Location", "").partition("?")[0])
        with contextlib.suppress(OSError, http.client.HTTPException):
            if not said and not _packed(response):
                said = said_by(response.read(_LONGEST_ERROR).decode("utf-8", "replace"))
        sentence = f"the upstream answers {response.status}" + (f": {said}" if said else "")
        if response.status in _BUSY:
            return _BusyError(sentence, after_s=_retry_after_s(response.headers.get("Retry-After")))
        return UpstreamError(sentence, permanent=is_permanent(response.status), status=response.status)


def unreadable(error: Exception) -> UpstreamError:
    return UpstreamError(f"the upstream's answer could not be read ({_named(error)})")


def _named(error: Exception) -> str:
    """On one line; of what the operating system says the words alone."""
    return said_by(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _packed(response: http.client.HTTPResponse) -> str:
    """How a body is packed that we have not asked to have packed; mostly empty."""
    encoding = str(response.headers.get("Content-Encoding") or "").strip().lower()
    return "" if encoding == "identity" else said_by(encoding)[:20]


def _retry_after_s(given: str | None) -> float:
    """Seconds, or a date as of HTTP; 0 for neither."""
    if given is None:
        return 0.0
    with contextlib.suppress(ValueError):
        return float(given)
    with contextlib.suppress(ValueError, TypeError):
        return parsedate_to_datetime(given).timestamp() - time.time()
    return 0.0
