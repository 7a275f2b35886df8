"""The producer for asyncio: the same talks, held in tasks, and one line that listens for all of them."""

from .client import AsyncProducer
from .handles import AsyncEmbeddingHandle, AsyncGenerationHandle, AsyncJobHandle, AsyncRerankHandle

__all__ = ["AsyncEmbeddingHandle", "AsyncGenerationHandle", "AsyncJobHandle", "AsyncProducer", "AsyncRerankHandle"]
