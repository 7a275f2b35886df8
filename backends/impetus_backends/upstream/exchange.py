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
from typing import TYPE_CHECKING, Any, TypeAlias

from .answers import UpstreamError, is_permanent, said_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .address import Address

_LONGEST_LINE = 16 * 2**20
_LONGEST_BODY = 64 * 2**20
_LONGEST_ERROR = 64 * 2**10
_FIRST_WAIT_S, _MAX_WAIT_S = 0.25, 2.0
"""Between two tries to connect."""
_RESETS = 3
_DONE = "[DONE]"


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
            ended = UpstreamError(f"the upstream's answer could not be read ({_named(error)})")
        self._tell(self, ended)

    def _chunks(self) -> Iterator[dict[str, Any]]:
        """Those of one answer. A server whose queue of connections is full resets some of them: these are tried again,
        a few times only, for it may also be the request that it dies of."""
        until, wait_s = time.monotonic() + self._patience.away_s, _FIRST_WAIT_S
        for _ in range(_RESETS):
            try:
                yield from self._chunks_of_one_try()
            except _ResetError:
                if time.monotonic() >= until or self._cancelled.wait(wait_s):
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
            headers = {"Content-Type": "application/json", "Accept": "text/event-stream", "Connection": "close"}
            body = json.dumps(self._body).encode()
            try:
                connection.request("POST", self._path, body, headers | bearer(self._key))
                answer = connection.getresponse()
            except http.client.RemoteDisconnected:
                raise
            except (ConnectionResetError, BrokenPipeError) as error:
                raise _ResetError(*error.args) from None
            with answer as response:
                if response.status != 200:
                    raise self._refused(response)
                if response.headers.get_content_type() == "text/event-stream":
                    yield from self._events(response, own)
                else:
                    yield _chunk(response.read(_LONGEST_BODY).decode("utf-8", "replace"))
        finally:
            with self._lock:
                self._socket = None
            connection.close()

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
        said = ""
        with contextlib.suppress(OSError, http.client.HTTPException):
            said = without_key(said_by(response.read(_LONGEST_ERROR).decode("utf-8", "replace")), self._key)
        sentence = f"the upstream answers {response.status}" + (f": {said}" if said else "")
        return UpstreamError(sentence, permanent=is_permanent(response.status))

    def _events(self, response: http.client.HTTPResponse, own: socket.socket) -> Iterator[dict[str, Any]]:
        """Server-sent events, until the last one or the end of the connection."""
        data: list[str] = []
        while raw := response.readline(_LONGEST_LINE):
            if len(raw) == _LONGEST_LINE:
                raise UpstreamError(f"the upstream sent a line of more than {_LONGEST_LINE:,} bytes")
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            field, _, value = line.partition(":")
            if field == "data":
                data.append(value.removeprefix(" "))
            elif field == "error":  # so does llama.cpp, in the middle of a stream
                raise UpstreamError(f"the upstream failed while it answered: {said_by(value)}")
            elif not line and data:
                event, data = "\n".join(data), []
                if event.strip() == _DONE:
                    return
                yield _chunk(event)
                own.settimeout(self._patience.between_s)
        if data and (event := "\n".join(data).strip()) != _DONE:
            yield _chunk(event)


def _chunk(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UpstreamError(f"the upstream sent what is no JSON object: {said_by(text)[:100]!r}")
    return value


def _named(error: Exception) -> str:
    """On one line; of what the operating system says the words alone."""
    return said_by(getattr(error, "strerror", None) or str(error) or type(error).__name__)
