"""The producer for asyncio: the same talks, held in tasks, and one line that listens for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from .client import AsyncProducer
from .handles import AsyncEmbeddingHandle, AsyncGenerationHandle, AsyncJobHandle, AsyncRerankHandle
from .spread import AsyncSpreadProducer

if TYPE_CHECKING:
    from ..client import Producer
    from ..spread import SpreadProducer

__all__ = [
    "AnyAsyncProducer",
    "AsyncEmbeddingHandle",
    "AsyncGenerationHandle",
    "AsyncJobHandle",
    "AsyncProducer",
    "AsyncRerankHandle",
    "AsyncSpreadProducer",
    "for_tasks",
]

AnyAsyncProducer: TypeAlias = AsyncProducer | AsyncSpreadProducer


def for_tasks(producer: Producer | SpreadProducer, *, patience_s: float | None = None) -> AnyAsyncProducer:
    """One for asyncio, for the same server or servers."""
    connections = [each.connection for each in producer.servers]
    if len(connections) == 1:
        return AsyncProducer(connection=connections[0], patience_s=patience_s)
    return AsyncSpreadProducer(connections=connections, patience_s=patience_s)
