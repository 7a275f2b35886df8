"""Heads of requests: what comes before a body, bounded in bytes and in time, which uvicorn leaves to a proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

_MAX_BYTES = 65_536
_WITHIN_S = 20.0
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 32\r\nconnection: close\r\n\r\nThe head is larger than 64 KiB.\r\n"
)


class BoundedHeads(HttpToolsProtocol):
    """A connection that is closed where a head does not end. Of a head that has come at once the size is that of a read
    of asyncio's at most, 256 KiB.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_bytes = 0
        self._head_ends: asyncio.TimerHandle | None = None
        """Set while a head is awaited."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_ends is None:
            return
        self._head_bytes += len(data)
        if self._head_bytes > _MAX_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def _await_head(self) -> None:
        if self._head_ends is None:
            self._head_ends = self.loop.call_later(_WITHIN_S, self.timeout_keep_alive_handler)

    def _head_came(self) -> None:
        if self._head_ends is not None:
            self._head_ends.cancel()
        self._head_ends, self._head_bytes = None, 0
