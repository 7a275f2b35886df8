"""One run of a job by the fake worker: what lies in Redis of it, as a worker writes it."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import contract
from .contract import StreamEvent, StreamField
from .enqueueing import jobs
from .streams import stream_key

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

LOOK_EVERY_S = 0.005


@dataclass(frozen=True, slots=True)
class FakeJob:
    """A job as it was enqueued."""

    id: str
    queue: str
    function: str
    request: Mapping[str, Any]


class StoppedError(Exception):
    """Somebody cancelled the job while it ran."""


class EndedError(Exception):
    """The fake worker ends."""


class FakeRun:
    """One run of a job: what it says, and its end, as a worker writes them."""

    def __init__(self, job: FakeJob, redis: Any, ending: threading.Event) -> None:
        self._job = job
        self._redis = redis
        self._ending = ending
        self._streams = bool(job.request.get("stream"))
        self._entry({StreamField.EVENT: StreamEvent.START})

    def say(self, at: int, text: str) -> None:
        self._check()
        self._entry({StreamField.EVENT: StreamEvent.TEXT, StreamField.AT: at, StreamField.TEXT: text})

    def stall(self, stalled: threading.Event) -> None:
        stalled.set()
        while not self._ending.wait(LOOK_EVERY_S):
            self._check()
        raise EndedError

    def _check(self) -> None:
        if self._redis.exists(jobs.cancel_key(self._job.id)):
            raise StoppedError

    def _entry(self, fields: dict[Any, Any]) -> None:
        if self._streams:
            entry: Any = {StreamField.RUN: "run-1", **fields}
            self._redis.xadd(stream_key(self._job.id), entry)
            self._redis.expire(stream_key(self._job.id), contract.STREAM_TTL_S)

    def finish(self, result: Mapping[str, Any], vectors: bytes | None = None) -> None:
        written: dict[Any, Any] = {"return_value": base64.b64encode(json.dumps(result).encode())}
        if vectors is not None:
            written[contract.VECTORS_FIELD] = vectors
        self._end("finished", "finished", jobs.SUCCESSFUL, written)

    def fail(self, status: str, sentence: str) -> None:
        trace = f"impetus_worker.errors.RequestError: {sentence}\n"
        self._end(status, "failed", jobs.FAILED, {"exc_string": base64.b64encode(zlib.compress(trace.encode()))})

    def _end(self, status: str, registry: str, kind: int, written: dict[Any, Any]) -> None:
        job, job_id = self._job, self._job.id
        self._entry({StreamField.EVENT: StreamEvent.END, StreamField.STATUS: status})
        ttl = self._redis.hget(jobs.job_key(job_id), "result_ttl" if registry == "finished" else "failure_ttl")
        ttl_s = int(ttl or contract.DEFAULT_RESULT_TTL_S)
        now_s: Any = self._redis.time()
        with self._redis.pipeline() as pipeline:
            pipeline.hset(jobs.job_key(job_id), "status", status)
            pipeline.xadd(jobs.results_key(job_id), {"type": kind, **written})
            pipeline.zadd(f"rq:{registry}:{job.queue}", {job_id: now_s[0] + ttl_s if ttl_s >= 0 else "+inf"})
            for key in (jobs.job_key(job_id), jobs.results_key(job_id)) if ttl_s >= 0 else ():
                pipeline.expire(key, ttl_s)
            pipeline.delete(jobs.awaited_key(job_id), jobs.cancel_key(job_id))
            pipeline.execute()
