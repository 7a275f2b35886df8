"""Impetus for services that enqueue work: embeddings, rerankings and generations, through Redis, on Macs elsewhere.

    from impetus_producer import Producer

    producer = Producer("redis://localhost:6379/0")
    vectors = producer.embed(["first text", "second text"]).result(timeout_s=30).vectors

Importing this loads no numpy, no Redis client and no model library.
"""

from typing import TYPE_CHECKING, Any

from .bulk.embedder import ImpetusEmbedder, embed_batch
from .bulk.kept.remote_store import RedisStore
from .bulk.kept.store import Store
from .bulk.run import EmbeddedDocument, embed_documents
from .client import Producer
from .contract import (
    EmbeddingRequest,
    EmbeddingResult,
    GenerationRequest,
    GenerationResult,
    RerankRequest,
    RerankResult,
)
from .documents import Document, FailedDocument
from .errors import (
    ImpetusError,
    InvalidRequestError,
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    MissingExtraError,
    NoServerError,
    ResultTimeoutError,
    ServerConfigurationError,
    ServerDataError,
    ServerError,
    ServerFullError,
    ServerNotReadyError,
    StreamRestartedError,
    UnreadableResultError,
)
from .handles import EmbeddingHandle, GenerationHandle, JobHandle, RerankHandle
from .servers.troubles import adopt, connect
from .spread import SpreadProducer

if TYPE_CHECKING:
    from .asynchronous.client import AsyncProducer
    from .asynchronous.handles import AsyncEmbeddingHandle, AsyncGenerationHandle, AsyncJobHandle, AsyncRerankHandle
    from .asynchronous.spread import AsyncSpreadProducer

    __version__: str

__all__ = [
    "AsyncEmbeddingHandle",
    "AsyncGenerationHandle",
    "AsyncJobHandle",
    "AsyncProducer",
    "AsyncRerankHandle",
    "AsyncSpreadProducer",
    "Document",
    "EmbeddedDocument",
    "EmbeddingHandle",
    "EmbeddingRequest",
    "EmbeddingResult",
    "FailedDocument",
    "GenerationHandle",
    "GenerationRequest",
    "GenerationResult",
    "ImpetusEmbedder",
    "ImpetusError",
    "InvalidRequestError",
    "JobCancelledError",
    "JobFailedError",
    "JobHandle",
    "JobNotFoundError",
    "MissingExtraError",
    "NoServerError",
    "Producer",
    "RedisStore",
    "RerankHandle",
    "RerankRequest",
    "RerankResult",
    "ResultTimeoutError",
    "ServerConfigurationError",
    "ServerDataError",
    "ServerError",
    "ServerFullError",
    "ServerNotReadyError",
    "SpreadProducer",
    "Store",
    "StreamRestartedError",
    "UnreadableResultError",
    "__version__",
    "adopt",
    "connect",
    "embed_batch",
    "embed_documents",
]


def __getattr__(name: str) -> Any:
    # Who waits in threads need not load asyncio.
    if name.startswith("Async") and name in __all__:
        from . import asynchronous

        return getattr(asynchronous, name)
    # Reading the packages' metadata takes longer than all the rest.
    if name == "__version__":
        from importlib.metadata import version

        return version("impetus-batch")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
