"""A fake worker in this process, so that a service tests its own code without Redis and without a model.

    from impetus_producer.testing import FakeWorker

    with FakeWorker() as fake:
        fake.answer("Name three rivers.", "Aare, Inn, Rhine")
        service = Service(fake.producer)          # your code, which takes a Producer

        assert service.search("tea")              # embeds: the same text has the same vector, of length 1
        assert service.rivers() == ["Aare", "Inn", "Rhine"]

        fake.fail_next("input: item 0 is bad")    # what your code does then
        with fake.paused():                       # or while nobody works
            ...
        assert fake.jobs[0].request["input"] == ["tea"]

Code for asyncio takes an `AsyncProducer(connection=fake.connection)`.

Needs fakeredis: pip install 'impetus-batch[testing]'.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
import struct
import threading
import zlib
from collections import Counter, deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from . import contract
from .client import Producer
from .contract import EmbeddingRequest, GenerationRequest, RerankRequest
from .enqueueing import jobs
from .enqueueing.parsing import parse_request
from .errors import InvalidRequestError, MissingExtraError
from .fake_runs import LOOK_EVERY_S, EndedError, FakeJob, FakeRun, StoppedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

__all__ = ["FakeJob", "FakeWorker", "vector_of"]

_NAME = "fake"
_MODEL = "fake-model"
_VOCABULARY = 30_522
_PROVENANCE = {
    "worker": _NAME,
    "backend": "simulated",
    "device": "none",
    "fingerprint": "fake",
    "note": "made for tests",
}


class _FailedError(Exception):
    """The job fails with this sentence."""


class FakeWorker:
    """Works all queues on a server of its own, in a thread, for the time of a `with` block. Jobs end in order.

    `producer`: a `Producer` for the code under test. `connection`: a redis client of the same server, where that code
    makes its own. `dimensions`: of vectors, where a request does not say.
    """

    def __init__(self, dimensions: int = 32) -> None:
        try:
            from fakeredis import FakeRedis, FakeServer
        except ImportError:
            raise MissingExtraError("a fake worker", "testing") from None
        self.connection: Redis = FakeRedis(server=FakeServer())
        self.producer = Producer(connection=self.connection, patience_s=0)
        self._dimensions = dimensions
        self._redis: Any = self.producer.connection
        self._answers: dict[str, str] = {}
        self._failures: deque[str] = deque()
        self._stalls: deque[threading.Event] = deque()
        self._pauses = 0
        self._taken: list[FakeJob] = []
        self._taking = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake-worker", daemon=True)

    def __enter__(self) -> FakeWorker:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._thread.join()
        self.producer.close()
        self.connection.close()

    @property
    def jobs(self) -> list[FakeJob]:
        """What was enqueued: jobs that were taken in the order of their taking, then those that wait."""
        with self._taking:
            waiting = [
                self._read(job_id.decode())
                for queue in _queues()
                for job_id in self._redis.lrange(jobs.queue_key(queue), 0, -1)
            ]
            return [*self._taken, *(job for job in waiting if job is not None)]

    def answer(self, prompt: str, text: str) -> None:
        """From now on `prompt`, or a conversation whose last message it is, is answered with `text`."""
        self._answers[prompt] = text

    def fail_next(self, sentence: str) -> None:
        """The next job to run fails with `sentence`; the one after it with that of another call."""
        self._failures.append(sentence)

    def stall_next(self) -> threading.Event:
        """The next job starts, which sets the event returned, and does not end by itself: cancel it, or let the block
        end.
        """
        self._stalls.append(threading.Event())
        return self._stalls[-1]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No job is taken in the block."""
        with self._taking:
            self._pauses += 1
        try:
            yield
        finally:
            with self._taking:
                self._pauses -= 1

    def _run(self) -> None:
        while not self._ending.is_set():
            if (taken := self._take()) is None:
                self._ending.wait(LOOK_EVERY_S)
            else:
                self._work(taken)

    def _take(self) -> FakeJob | None:
        """The job whose turn it is, which is started now."""
        with self._taking:
            for queue in _queues() if not self._pauses else ():
                popped: Any = self._redis.lpop(jobs.queue_key(queue))
                if popped is not None and (job := self._start(popped.decode())) is not None:
                    self._taken.append(job)
                    return job
        return None

    def _start(self, job_id: str) -> FakeJob | None:
        def step(pipeline: Any) -> FakeJob | None:
            job = self._read(job_id) if pipeline.hget(jobs.job_key(job_id), "status") == b"queued" else None
            pipeline.multi()
            if job is not None:
                pipeline.hset(jobs.job_key(job_id), mapping={"status": "started", "worker_name": _NAME})
            return job

        # Anew where somebody cancels it meanwhile.
        started: FakeJob | None = self._redis.transaction(step, jobs.job_key(job_id), value_from_callable=True)
        return started

    def _read(self, job_id: str) -> FakeJob | None:
        data, origin = self._redis.hmget(jobs.job_key(job_id), "data", "origin")
        if data is None or origin is None:
            return None
        with suppress(zlib.error):
            data = zlib.decompress(data)
        function, _, arguments, _ = json.loads(data)
        return FakeJob(job_id, origin.decode(), function, arguments[0])

    def _work(self, job: FakeJob) -> None:
        run = FakeRun(job, self._redis, self._ending)
        try:
            if self._stalls:
                run.stall(self._stalls.popleft())
            if self._failures:
                raise _FailedError(self._failures.popleft())
            if job.function == contract.EMBED_FUNCTION:
                run.finish(*self._embed(parse_request(EmbeddingRequest, job.request)))
            elif job.function == contract.RERANK_FUNCTION:
                run.finish(self._rerank(parse_request(RerankRequest, job.request)))
            elif job.function == contract.GENERATE_FUNCTION:
                run.finish(self._generate(parse_request(GenerationRequest, job.request), run))
            else:
                raise _FailedError(f"there is no function {job.function!r} here")
        except (InvalidRequestError, _FailedError) as error:
            run.fail("failed", str(error))
        except StoppedError:
            run.fail("stopped", "the job was stopped")
        except EndedError:
            pass

    def _embed(self, request: EmbeddingRequest) -> tuple[dict[str, Any], bytes | None]:
        """The result, and the vectors where they lie beside it."""
        if request.output == "sparse":
            return self._embedded(request, {"encoding": "sparse", "data": list(map(_sparse, request.input))}), None
        width = request.dimensions or self._dimensions
        rows = [vector_of(text, width) for text in request.input]
        raw = b"".join(struct.pack(f"<{width}f", *row) for row in rows)
        data = {"base64": base64.b64encode(raw).decode(), "float": rows, "raw": ""}[request.encoding_format]
        shape = [len(rows), width]
        block = {"dtype": "float32", "shape": shape, "encoding": request.encoding_format, "data": data}
        return self._embedded(request, block), raw if request.encoding_format == "raw" else None

    def _embedded(self, request: EmbeddingRequest, block: dict[str, Any]) -> dict[str, Any]:
        return {
            "object": "embedding",
            "embeddings": block,
            "model": request.model or _MODEL,
            "usage": {"prompt_tokens": sum(len(_tokens(text)) for text in request.input)},
            "provenance": _PROVENANCE,
        }

    def _rerank(self, request: RerankRequest) -> dict[str, Any]:
        """The score of a document is the share of the query's words that it holds."""
        asked = set(request.query.lower().split())
        scores = [len(asked & set(text.lower().split())) / max(1, len(asked)) for text in request.documents]
        order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[: request.top_n]
        results = [
            {"index": index, "relevance_score": scores[index]}
            | ({"document": {"text": request.documents[index]}} if request.return_documents else {})
            for index in order
        ]
        return {
            "object": "rerank",
            "results": results,
            "model": request.model or _MODEL,
            "usage": {"prompt_tokens": sum(len(_tokens(f"{request.query} {text}")) for text in request.documents)},
            "provenance": _PROVENANCE,
        }

    def _generate(self, request: GenerationRequest, run: FakeRun) -> dict[str, Any]:
        prompt = request.prompt if request.prompt is not None else [*(request.messages or ())][-1].text
        usual = "{}" if request.response_format is not None else f"An answer to: {prompt}"
        tokens = _tokens(self._answers.get(prompt, usual))
        made = tokens[: request.most_tokens]
        for at, token in enumerate(made if request.stream else ()):
            run.say(len("".join(made[:at])), token)
        return {
            "object": "generation",
            "text": "".join(made),
            "finish_reason": "stop" if len(made) == len(tokens) else "length",
            "model": request.model or _MODEL,
            "usage": {"prompt_tokens": len(_tokens(prompt)), "completion_tokens": len(made)},
            "timings": {"first_token_s": 0.0, "total_s": 0.0},
            "provenance": _PROVENANCE,
        }


def vector_of(text: str, dimensions: int) -> list[float]:
    """The vector of a text, of length 1: always the same for the same text, and another for another."""
    draw = random.Random(hashlib.blake2b(text.encode(), digest_size=16).digest())
    numbers = [draw.gauss(0, 1) for _ in range(dimensions)]
    length = math.hypot(*numbers)
    return [number / length for number in numbers]


def _sparse(text: str) -> dict[str, Any]:
    """How often each word comes, by a number of the word's."""
    counts = Counter(zlib.crc32(word.encode()) % _VOCABULARY for word in text.split())
    return {"indices": sorted(counts), "values": [float(counts[index]) for index in sorted(counts)]}


def _queues() -> list[str]:
    """Those that somebody waits for first."""
    lanes = list(contract.ROLE_QUEUES.values())
    return [*(queues[0] for queues in lanes), *(queue for queues in lanes for queue in queues[1:])]


def _tokens(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)
