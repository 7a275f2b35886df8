"""A network that can be broken: a TCP proxy on loopback between a server and whoever connects to the proxy's address.

Runs in a thread of its own; a method has taken effect when it returns. Knows bytes, and of Redis' protocol only where
a command ends.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_CHUNK_BYTES = 65_536
_RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing sends RST, and not FIN."""


class Proxy:
    """Passes all on to `target_port` on loopback, until it is told otherwise."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._links: set[_Link] = set()
        self._forgotten: set[_Link] = set()
        self._refusing_connections = False
        self.passing = asyncio.Event()
        self.passing.set()
        self.delay_s = 0.0
        self.answers_to_cut = 0
        self.error: bytes | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        listening = asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"

    # -- what a network does -----------------------------------------------------------------------------------------

    def forget(self) -> int:
        """What is connected stays so, and nothing passes there ever again, as behind a NAT that forgot. New
        connections pass. Returns how many were forgotten.
        """
        return self._do(self._forget)

    def _forget(self) -> int:
        count = len(self._links)
        for link in self._links:
            link.forget()
        self._forgotten |= self._links
        self._links.clear()
        return count

    def black_hole(self) -> None:
        """Nothing passes any more, on new connections either, which are accepted; all of it after `heal()`."""
        self._do(self.passing.clear)

    def reset(self) -> None:
        """Everyone's connection is reset (RST), at both ends."""

        def reset() -> None:
            for link in list(self._links):
                link.reset()

        self._do(reset)

    def refuse_connections(self) -> None:
        """`reset()`, and new connections are reset at once, until `heal()`."""
        self._do(lambda: setattr(self, "_refusing_connections", True))
        self.reset()

    def delay(self, seconds: float) -> None:
        """All that passes, either way, takes so much longer."""
        self._do(lambda: setattr(self, "delay_s", seconds))

    def cut_answers(self, count: int) -> None:
        """Of the next `count` pieces that the server sends only the first half arrives, and then a reset."""
        self._do(lambda: setattr(self, "answers_to_cut", count))

    def answer_with(self, error: str) -> None:
        """Every command is answered with this error (`LOADING …`) and not passed on, until `heal()`."""
        self._do(lambda: setattr(self, "error", f"-{error}\r\n".encode()))

    def lead_to(self, target_port: int) -> None:
        """New connections reach another server; what is connected stays where it is."""
        self._do(lambda: setattr(self, "_target_port", target_port))

    def heal(self) -> None:
        """As at the beginning, but for where it leads to, and for what was forgotten."""

        def healed() -> None:
            self.passing.set()
            self._refusing_connections, self.delay_s, self.answers_to_cut, self.error = False, 0.0, 0, None

        self._do(healed)

    def close(self) -> None:
        """Ends all connections and the thread."""

        async def close() -> None:
            self._server.close()
            for link in [*self._links, *self._forgotten]:
                link.reset()
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, action: Callable[[], T]) -> T:
        async def act() -> T:
            return action()

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(10)

    # -- connections -------------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(self, reader, writer)
        if self._refusing_connections:
            link.reset()
            return
        self._links.add(link)
        try:
            with suppress(asyncio.CancelledError):  # at the end; asyncio would report it
                await self.passing.wait()
                await link.carry(self._target_port)
        finally:
            self._links.discard(link)
            if link not in self._forgotten:
                link.reset()


class _Link:
    """One connection, from both sides."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = reader, writer
        self._writers = [writer]
        self._pumps: list[asyncio.Task[None]] = []

    async def carry(self, port: int) -> None:
        """Until one side closes, or what is between breaks."""
        try:
            server = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return
        self._writers.append(server[1])
        self._pumps = [
            asyncio.create_task(self._pump(self._client[0], server[1], answers=False)),
            asyncio.create_task(self._pump(server[0], self._client[1], answers=True)),
        ]
        try:
            await asyncio.wait(self._pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in self._pumps:
                pump.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)

    def forget(self) -> None:
        """Reads no more: what is sent here fills the buffers on the way and then goes nowhere."""
        for pump in self._pumps:
            pump.cancel()
        for writer in self._writers:
            with suppress(RuntimeError):  # it is paused, or closing
                writer.transport.pause_reading()  # type: ignore[attr-defined]

    def reset(self) -> None:
        for writer in self._writers:
            if (connection := writer.get_extra_info("socket")) is not None:
                with suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        """Two tasks, so that what is delayed does not hold up what follows."""
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)

        async def collect() -> None:
            data = b"-"
            while data:
                with suppress(OSError):
                    data = b""
                    data = await self._read(reader, answers)
                await on_the_way.put((self._proxy._loop.time() + self._proxy.delay_s, data))

        collecting = asyncio.create_task(collect())
        try:
            with suppress(OSError):
                await self._deliver(on_the_way, writer, answers)
        finally:
            collecting.cancel()

    async def _read(self, reader: asyncio.StreamReader, answers: bool) -> bytes:
        while (data := await reader.read(_CHUNK_BYTES)) and not answers and (error := self._proxy.error) is not None:
            whole = _whole_commands(data)
            while whole is None and (more := await reader.read(_CHUNK_BYTES)):
                data += more
                whole = _whole_commands(data)
            if not whole:
                return b""  # it came in the middle of a command: there is no telling where the next begins
            self._client[1].write(error * whole)
        return data

    async def _deliver(
        self, on_the_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, answers: bool
    ) -> None:
        while True:
            due, data = await on_the_way.get()
            if (left_s := due - self._proxy._loop.time()) > 0:
                await asyncio.sleep(left_s)
            await self._proxy.passing.wait()
            if not data:
                return
            if answers and self._proxy.answers_to_cut:
                self._proxy.answers_to_cut -= 1
                writer.write(data[: len(data) // 2])
                await writer.drain()
                # What was written leaves before the reset does: a reset discards what is not sent yet.
                await asyncio.sleep(0.01)
                return
            writer.write(data)
            await writer.drain()


def _whole_commands(data: bytes) -> int | None:
    """How many commands these bytes are; None while the last is not whole; 0 if they begin inside one."""
    count = at = 0
    while at < len(data):
        if data[at : at + 1] != b"*":
            return 0
        try:
            end = data.index(b"\r\n", at)
            parts, at = int(data[at + 1 : end]), end + 2
            for _ in range(parts):
                end = data.index(b"\r\n", at)
                at = end + 2 + int(data[at + 1 : end]) + 2
        except ValueError:
            return None
        count += 1
    return count if at == len(data) else None
