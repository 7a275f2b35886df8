"""Tasks that wait beside what a test does."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tests.patience import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine


@asynccontextmanager
async def waiting(*awaited: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Future[list[Any]]]:
    """Tasks that wait beside the block, each until it has an answer or an error."""
    tasks = asyncio.gather(*awaited, return_exceptions=True)
    await asyncio.sleep(0)
    yield tasks
    async with asyncio.timeout(60):
        await tasks


async def come_to_pass(look: Callable[[], Any]) -> Any:
    """What `look` returns once it is true, letting the tasks go on."""
    return await asyncio.to_thread(eventually, look)
