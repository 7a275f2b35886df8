"""A worker for tests: a thread that pops jobs and writes RQ's own results, with vectors that tell their text.

It uses RQ's classes on purpose, so that what our client reads is what RQ writes.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from redis import Redis
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from rq.results import Result
from rq.serializers import JSONSerializer

QUEUES = ("embedding", "embedding-bulk", "generation", "generation-bulk", "rerank", "rerank-bulk")
WIDTH = 8
PROVENANCE = {"worker": "stock", "backend": "simulated", "device": "none", "fingerprint": "f"}

Work = Callable[[str, dict[str, Any]], Any]


class RefusedError(Exception):
    """The job fails with this sentence."""


def vector_of(text: str) -> list[float]:
    """A vector that only this text has; each number is a float32."""
    numbers = struct.unpack(f"<{WIDTH}h", hashlib.blake2b(text.encode(), digest_size=2 * WIDTH).digest())
    return [number / 32768 for number in numbers]


def embedding_of(texts: list[str]) -> dict[str, Any]:
    """An embedding result, as it lies in Redis."""
    raw = b"".join(struct.pack(f"<{WIDTH}f", *vector_of(text)) for text in texts)
    block = {"dtype": "float32", "shape": [len(texts), WIDTH], "encoding": "base64"}
    return {
        "object": "embedding",
        "embeddings": {**block, "data": base64.b64encode(raw).decode()},
        "model": "stock-model",
        "usage": {"prompt_tokens": len(texts)},
        "provenance": PROVENANCE,
    }


def generation_of(text: str) -> dict[str, Any]:
    return {
        "object": "generation",
        "text": text,
        "finish_reason": "stop",
        "model": "stock-model",
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
        "timings": {"first_token_s": 0.1, "total_s": 0.2},
        "provenance": PROVENANCE,
    }


def ranking_of(documents: list[str], top_n: int | None) -> dict[str, Any]:
    """The longer a document, the more relevant it is."""
    order = sorted(range(len(documents)), key=lambda at: -len(documents[at]))
    return {
        "object": "rerank",
        "results": [{"index": at, "relevance_score": len(documents[at]) / 100} for at in order[:top_n]],
        "model": "stock-model",
        "usage": {"prompt_tokens": len(documents)},
        "provenance": PROVENANCE,
    }


def honest_work(function: str, request: dict[str, Any]) -> Any:
    """Embeds texts; a text that says so fails its whole job. Answers a prompt with the prompt. Orders by length."""
    if function.endswith("rerank"):
        return ranking_of(request["documents"], request.get("top_n"))
    if function.endswith("generate"):
        return generation_of(request.get("prompt") or request["messages"][-1]["content"])
    texts = [request["input"]] if isinstance(request["input"], str) else request["input"]
    for index, text in enumerate(texts):
        if text.startswith("bad"):
            raise RefusedError(f"input: item {index} is bad")
    return embedding_of(texts)


def finish(connection: Redis, job_id: str, value: Any) -> None:
    """Ends a job well, as RQ's worker does."""
    job = Job.fetch(job_id, connection, serializer=JSONSerializer)
    with connection.pipeline() as pipeline:
        job.set_status(JobStatus.FINISHED, pipeline=pipeline)
        Result.create(job, Result.Type.SUCCESSFUL, ttl=job.result_ttl, return_value=value, pipeline=pipeline)
        FinishedJobRegistry(job.origin, connection).add(job, 500, pipeline)
        pipeline.execute()


def fail(connection: Redis, job_id: str, sentence: str, reason: str = "RequestError") -> None:
    """Ends a job badly, as RQ's worker does."""
    job = Job.fetch(job_id, connection, serializer=JSONSerializer)
    with connection.pipeline() as pipeline:
        job.set_status(JobStatus.FAILED, pipeline=pipeline)
        trace = f"Traceback (most recent call last):\n  ...\nimpetus_worker.errors.{reason}: {sentence}\n"
        FailedJobRegistry(job.origin, connection).add(job, 500, trace, pipeline)
        Result.create_failure(job, 500, trace, pipeline=pipeline)
        pipeline.execute()


class StockWorker:
    """Pops and ends jobs until told to stop. `most_queued` is the longest queue it saw."""

    def __init__(self, redis_url: str, work: Work) -> None:
        self.most_queued = 0
        self.jobs_done = 0
        # It may wait for a job as long as it takes.
        self._connection = Redis.from_url(redis_url, socket_timeout=None)
        self._work = work
        self._thread = threading.Thread(target=self._run, name="stock-worker")
        self.error: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._connection.rpush("test:stop", "now")
        self._thread.join(timeout=60)
        self._connection.close()
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            keys = ["test:stop", *(f"rq:queue:{name}" for name in QUEUES)]
            while True:
                popped: Any = self._connection.blpop(keys)
                key, job_id = popped[0].decode(), popped[1].decode()
                if key == "test:stop":
                    return
                self.most_queued = max(self.most_queued, 1 + int(self._connection.llen(key)))
                self._do(job_id)
                self.jobs_done += 1
        except BaseException as error:  # noqa: BLE001 - `stop` raises it in the test's thread
            self.error = error

    def _do(self, job_id: str) -> None:
        # RQ's worker passes over a job that was deleted while it waited, and the end of one that was deleted as it ran.
        with suppress(NoSuchJobError):
            job = Job.fetch(job_id, self._connection, serializer=JSONSerializer)
            try:
                value = self._work(str(job.func_name), job.args[0])
            except RefusedError as error:
                fail(self._connection, job_id, str(error))
            else:
                finish(self._connection, job_id, value)


@contextmanager
def working(redis_url: str, work: Work = honest_work) -> Iterator[StockWorker]:
    """A worker for the time of the block."""
    worker = StockWorker(redis_url, work)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()
