"""Impetus for services that enqueue work: embeddings and generations, through Redis, on Macs elsewhere.

    from impetus_producer import Producer

    producer = Producer("redis://localhost:6379/0")
    vectors = producer.embed(["first text", "second text"]).result(timeout_s=30).vectors

Importing this loads no numpy, no Redis client and no model library.
"""

from .client import Producer
from .contract import EmbeddingRequest, EmbeddingResult, GenerationRequest, GenerationResult
from .errors import (
    ImpetusError,
    InvalidRequestError,
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    MissingExtraError,
    NoServerError,
    ResultTimeoutError,
    StreamRestartedError,
)
from .handles import EmbeddingHandle, GenerationHandle, JobHandle
from .server import connect

__all__ = [
    "EmbeddingHandle",
    "EmbeddingRequest",
    "EmbeddingResult",
    "GenerationHandle",
    "GenerationRequest",
    "GenerationResult",
    "ImpetusError",
    "InvalidRequestError",
    "JobCancelledError",
    "JobFailedError",
    "JobHandle",
    "JobNotFoundError",
    "MissingExtraError",
    "NoServerError",
    "Producer",
    "ResultTimeoutError",
    "StreamRestartedError",
    "connect",
]
