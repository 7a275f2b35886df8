"""Impetus for services that enqueue work: embeddings, rerankings and generations, through Redis, on Macs elsewhere.

    from impetus_producer import Producer

    producer = Producer("redis://localhost:6379/0")
    vectors = producer.embed(["first text", "second text"]).result(timeout_s=30).vectors

Importing this loads nothing else: a name is fetched from its module when it is first asked for. Those load no numpy, no
Redis client and no model library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .asynchronous.client import AsyncProducer
    from .asynchronous.handles import AsyncEmbeddingHandle, AsyncGenerationHandle, AsyncJobHandle, AsyncRerankHandle
    from .asynchronous.spread import AsyncSpreadProducer
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
_NAMES = {
    "asynchronous.client": ("AsyncProducer",),
    "asynchronous.handles": (
        "AsyncEmbeddingHandle",
        "AsyncGenerationHandle",
        "AsyncJobHandle",
        "AsyncRerankHandle",
    ),
    "asynchronous.spread": ("AsyncSpreadProducer",),
    "bulk.embedder": (
        "ImpetusEmbedder",
        "embed_batch",
    ),
    "bulk.kept.remote_store": ("RedisStore",),
    "bulk.kept.store": ("Store",),
    "bulk.run": (
        "EmbeddedDocument",
        "embed_documents",
    ),
    "client": ("Producer",),
    "contract": (
        "EmbeddingRequest",
        "EmbeddingResult",
        "GenerationRequest",
        "GenerationResult",
        "RerankRequest",
        "RerankResult",
    ),
    "documents": (
        "Document",
        "FailedDocument",
    ),
    "errors": (
        "ImpetusError",
        "InvalidRequestError",
        "JobCancelledError",
        "JobFailedError",
        "JobNotFoundError",
        "MissingExtraError",
        "NoServerError",
        "ResultTimeoutError",
        "ServerConfigurationError",
        "ServerDataError",
        "ServerError",
        "ServerFullError",
        "ServerNotReadyError",
        "StreamRestartedError",
        "UnreadableResultError",
    ),
    "handles": (
        "EmbeddingHandle",
        "GenerationHandle",
        "JobHandle",
        "RerankHandle",
    ),
    "servers.troubles": (
        "adopt",
        "connect",
    ),
    "spread": ("SpreadProducer",),
}
"""Of each module, the names that are asked for here."""
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    elif name == "__version__":
        # Reading the packages' metadata takes longer than all the rest.
        from importlib.metadata import version

        value = version("impetus-batch")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
