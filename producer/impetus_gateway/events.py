"""Server-sent events: an endless answer that notices when nobody listens any more.

Source of the format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_core import to_json
from starlette.responses import Response

from impetus_producer.errors import ImpetusError

from .entry.errors import HttpError, http_error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence

    from starlette.types import Receive, Scope, Send

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
_TAKEN_WITHIN_S = 60.0
_PING = b": still here\n\n"


class HungUpError(Exception):
    """Whoever asked is gone."""


def event(data: Any, name: str = "") -> bytes:
    """One event whose data is JSON, which has no line ends."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + to_json(data, inf_nan_mode="null") + b"\n\n"


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises; ends it and raises `HungUpError` where the client is gone before. The request's
    body has to be read.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise HungUpError
    finally:
        await _end(working, gone)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def together(several: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of these return; where one raises, the others are ended."""
    tasks = [asyncio.ensure_future(each) for each in several]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _end(*tasks)


class EventStream(Response):
    """Sends what `events` yields, as it comes, and a comment after `ping_s` without any.

    Where the client goes before the end, `events` is closed and `on_hang_up` called.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        ping_s: float,
        on_hang_up: Callable[[], None] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._events = events
        self._ping_s = ping_s
        self._on_hang_up = on_hang_up

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ended = False
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] == "HEAD":
                await _sent(send, b"", more=False)
                await self._events.aclose()
                return
            with suppress(HungUpError):
                await unless_gone(receive, self._send_all(send))
                ended = True
        finally:
            if not ended and self._on_hang_up is not None:
                self._on_hang_up()

    async def _send_all(self, send: Send) -> None:
        async for chunk in pinged(self._events, self._ping_s):
            await _sent(send, chunk, more=True)
        await _sent(send, b"", more=False)


async def _sent(send: Send, chunk: bytes, *, more: bool) -> None:
    """Raises `HungUpError` for a client that is there and takes nothing."""
    try:
        async with asyncio.timeout(_TAKEN_WITHIN_S):
            await send({"type": "http.response.body", "body": chunk, "more_body": more})
    except TimeoutError:
        raise HungUpError from None


async def pinged(events: AsyncGenerator[bytes, None], every_s: float) -> AsyncGenerator[bytes, None]:
    """`events`, and a comment whenever none came for so long. Closes them however it ends."""
    coming: asyncio.Future[bytes] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            await asyncio.wait({coming}, timeout=every_s)
            if not coming.done():
                yield _PING
                continue
            done, coming = coming, None
            try:
                chunk = done.result()
            except StopAsyncIteration:
                return
            yield chunk
    finally:
        if coming is not None:
            await _end(coming)
        await events.aclose()


async def merged(several: Sequence[AsyncGenerator[bytes, None]]) -> AsyncGenerator[bytes, None]:
    """What all of these yield, as it comes. Raises what the first of them raises; closes them however it ends."""
    coming = {asyncio.ensure_future(anext(each)): each for each in several}
    try:
        while coming:
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                events = coming.pop(each)
                try:
                    chunk = each.result()
                except StopAsyncIteration:
                    continue
                coming[asyncio.ensure_future(anext(events))] = events
                yield chunk
    finally:
        await _end(*coming)
        for events in several:
            await events.aclose()


async def begun(events: AsyncGenerator[bytes, None], within_s: float) -> AsyncGenerator[bytes, None]:
    """The same events, the first of which is waited for; so that what is wrong at once is an answer of its own.

    Raises what `events` raises before its first, where it does so in time.
    """
    first = asyncio.ensure_future(anext(events))
    try:
        await asyncio.wait({first}, timeout=within_s)
        error = first.exception() if first.done() else None
        if error is not None and not isinstance(error, StopAsyncIteration):
            raise error
    except BaseException:
        await _end(first)
        await events.aclose()
        raise
    return _resumed(first, events)


async def _resumed(first: asyncio.Future[bytes], events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    try:
        with suppress(StopAsyncIteration):
            yield await first
            async for each in events:
                yield each
    finally:
        await _end(first)
        await events.aclose()


async def told(events: AsyncGenerator[bytes, None], name: str = "") -> AsyncGenerator[bytes, None]:
    """`events`, the last of which says what they ended with, as the status is sent by then."""
    try:
        async for each in events:
            yield each
    except HttpError as error:
        yield event(error.body(), name)
    except ImpetusError as error:
        yield event(http_error(error).body(), name)
    finally:
        await events.aclose()
