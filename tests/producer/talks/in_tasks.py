"""An `AsyncProducer` asked as the blocking one is, so that the cases of one are those of both."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from impetus_producer import AsyncProducer
from impetus_producer.asynchronous import AsyncJobHandle

if TYPE_CHECKING:
    from collections.abc import Iterator


class InTasks:
    """What it is asked runs on `loop`, which another thread runs; handles that come back are asked so too."""

    def __init__(self, asked: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._asked = asked
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._asked, name)
        return (lambda *a, **k: self._answer(found(*a, **k))) if callable(found) else found

    def _answer(self, value: Any) -> Any:
        if inspect.isawaitable(value):
            value = asyncio.run_coroutine_threadsafe(_awaited(value), self._loop).result(60)
        if isinstance(value, AsyncIterator):
            return self._each(value)
        return InTasks(value, self._loop) if isinstance(value, AsyncJobHandle) else value

    def _each(self, values: Any) -> Iterator[Any]:
        try:
            while True:
                yield self._answer(anext(values))
        except StopAsyncIteration:
            return
        finally:
            self._answer(values.aclose())


async def _awaited(value: Any) -> Any:
    return await value


@contextmanager
def producer_in_tasks(redis_url: str) -> Iterator[Any]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="tasks")
    thread.start()
    try:
        producer = InTasks(AsyncProducer(redis_url), loop)
        yield producer
        producer.close()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
