"""The producer: puts requests on the queues and hands out what will become their results.

Knows the contract and Redis. Knows no model, no device, no file.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from . import contract, jobs
from .contract import EmbeddingRequest, EmbeddingResult, GenerationRequest, GenerationResult, parse_request
from .errors import JobCancelledError, JobFailedError, JobNotFoundError, ResultTimeoutError
from .server import connect, server_errors
from .streams import StreamText, partial_result, stream_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from redis import Redis

ResultT = TypeVar("ResultT", EmbeddingResult, GenerationResult)

_EndT = TypeVar("_EndT", JobFailedError, JobCancelledError)

InputType = Literal["query", "document"]
EncodingFormat = Literal["base64", "float", "raw"]
_JOBS_PER_ROUND_TRIP = 32
_POLL_S = 1.0
_BACKLOG_POLL_S = 0.05
_RENEW_S = 5.0
_END_AMONG_LAST = 16
"""The `end` is the last entry of a stream, but for what a worker that was taken for dead may still write."""


class JobHandle(Generic[ResultT]):
    """One job, by its id. Cheap to make, safe to keep, and to make again from the id in another process."""

    def __init__(self, job_id: str, connection: Redis, result_type: type[ResultT]) -> None:
        self.job_id = job_id
        self._connection = connection
        self._result_type: type[ResultT] = result_type

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.job_id!r})"

    def status(self) -> str:
        """RQ's word for it: queued, started, finished, failed, canceled, stopped, deferred or scheduled."""
        with server_errors():
            status = self._connection.hget(jobs.job_key(self.job_id), "status")
        if status is None:
            raise JobNotFoundError(f"there is no job {self.job_id}, or its time to live ran out")
        return _text(status)

    def result(self, timeout_s: float | None = None) -> ResultT:
        """Waits for the result; without `timeout_s`, for as long as it takes.

        Raises `ResultTimeoutError` when the time is over (the job goes on), `JobFailedError` with the worker's
        sentence, `JobCancelledError`, or `JobNotFoundError` when Redis no longer knows the job.
        """
        deadline = _deadline(timeout_s)
        key = jobs.results_key(self.job_id)
        seen: Any = {key: "0-0"}
        with server_errors():
            while True:
                entries = self._read(seen, deadline).get(key)
                if entries and (answer := self._answer(entries[-1])) is not None:
                    return answer
                self._look(deadline, timeout_s)

    def _read(self, seen: dict[Any, Any], deadline: float | None) -> dict[str, list[dict[bytes, bytes]]]:
        """New entries of the streams in `seen`, by key, moving it on; waits for `_POLL_S` at most."""
        left_s = _POLL_S if deadline is None else deadline - time.monotonic()
        # Redis takes a block of 0 as "for ever", and the status has to be looked at now and then.
        block_ms = max(1, int(min(left_s, _POLL_S) * 1000))
        self._say_that_somebody_waits()
        streams: Any = self._connection.xread(seen, block=block_ms)
        read: dict[str, list[dict[bytes, bytes]]] = {}
        for key, entries in dict(streams or {}).items():
            seen[_text(key)] = entries[-1][0]
            read[_text(key)] = [fields for _, fields in entries]
        return read

    def _answer(self, entry: Mapping[bytes, bytes]) -> ResultT | None:
        """The result in the last entry of the job's results, as that one counts: a job that was requeued keeps those of
        its earlier runs. None when it will be tried again; raises what it failed with.
        """
        outcome = jobs.decode_outcome(self.job_id, entry)
        if outcome.error is not None:
            if self.status() == "stopped":
                raise self._with_partial(JobCancelledError(f"job {self.job_id} was stopped while it ran"))
            raise self._with_partial(outcome.error)
        return jobs.read_result(self._result_type, outcome.return_value) if outcome.final else None

    def _look(self, deadline: float | None, timeout_s: float | None) -> None:
        """Raises why it is of no use to wait any longer, if so it is."""
        if (status := self.status()) in ("canceled", "stopped"):
            raise self._with_partial(JobCancelledError(f"job {self.job_id} was cancelled"))
        if status in ("finished", "failed") and not self._connection.exists(jobs.results_key(self.job_id)):
            raise JobNotFoundError(f"the result of job {self.job_id} was discarded: its time to live ran out")
        if deadline is not None and time.monotonic() >= deadline:
            raise ResultTimeoutError(f"job {self.job_id} is {status}: no result within {timeout_s:g} s")

    def _with_partial(self, error: _EndT) -> _EndT:
        return error

    def _say_that_somebody_waits(self) -> None:
        """Called before every wait, which takes `_POLL_S` at most."""

    def cancel(self) -> bool:
        """Withdraws a job that waits, stops one that runs. False when it had ended before."""
        # RQ's own way, so that registries, dependents and rate limits are seen to; its import is not cheap.
        from rq.command import send_stop_job_command
        from rq.exceptions import InvalidJobOperation, NoSuchJobError
        from rq.job import Job
        from rq.serializers import JSONSerializer

        status = self.status()
        if status in ("finished", "failed", "canceled", "stopped"):
            return False
        with server_errors():
            try:
                if status == "started":
                    send_stop_job_command(self._connection, self.job_id, serializer=JSONSerializer)
                else:
                    Job.fetch(self.job_id, self._connection, serializer=JSONSerializer).cancel()
            except (InvalidJobOperation, NoSuchJobError):
                return False
        return True

    def delete(self) -> None:
        """Frees what an ended job keeps in Redis, without waiting for its time to live."""
        with server_errors():
            jobs.discard(self._connection, [self.job_id])


class EmbeddingHandle(JobHandle[EmbeddingResult]):
    """An embedding job. `result().vectors` is (texts, dimensions), in the order of the texts."""

    def __init__(self, job_id: str, connection: Redis) -> None:
        super().__init__(job_id, connection, EmbeddingResult)


class GenerationHandle(JobHandle[GenerationResult]):
    """A generation job. `result().text` is what the model wrote, `stream()` the same while it is written.

    `awaited`: whether to say in Redis that somebody waits, for as long as `result()` or `stream()` does: for jobs that
    asked for `cancel_if_abandoned`. A handle made again from the id does so for any job, as it does not know; to those
    that did not ask it means nothing. It is said anew, and not only prolonged: whoever comes back after the time ran
    out may still be in time, as the worker looks only now and then.
    """

    def __init__(self, job_id: str, connection: Redis, *, awaited: bool = True) -> None:
        super().__init__(job_id, connection, GenerationResult)
        self._awaited = awaited
        self._renew_at = 0.0

    def stream(self, timeout_s: float | None = None, *, on_wait: Callable[[], None] | None = None) -> Iterator[str]:
        """Yields the text in pieces as it is made; together they are exactly `result().text`.

        May be called late (it begins with all that is there), more than once, and for a job that was not enqueued with
        `stream=True`, whose text comes in one piece. `on_wait` is called about once a second while nothing comes; what
        it raises ends the stream. Do not take longer over a piece than `ABANDONED_AFTER_S` where the job asked for
        `cancel_if_abandoned`.

        Raises `StreamRestartedError` when the worker had to begin anew after text was yielded: that text is void, and
        `stream()` again reads the new one. Else raises as `result()` does.
        """
        deadline = _deadline(timeout_s)
        key, results_key = stream_key(self.job_id), jobs.results_key(self.job_id)
        seen: Any = {key: "0-0", results_key: "0-0"}
        text = StreamText(self.job_id)
        look_at = 0.0
        while True:
            with server_errors():
                read = self._read(seen, deadline)
            try:
                with server_errors():
                    answer = self._answer(read[results_key][-1]) if results_key in read else None
            except (JobFailedError, JobCancelledError):
                yield from text.read(read.get(key, ()))
                raise
            if answer is None:
                yield from text.read(read.get(key, ()))
                if text.ended:
                    # Should the job not be over after all, it is soon, and the result is what counts.
                    answer = self.result(_left_s(deadline))
            if answer is not None:
                if rest := text.rest(answer.text):
                    yield rest
                return
            if not read or time.monotonic() >= look_at:
                look_at = time.monotonic() + _POLL_S
                with server_errors():
                    self._look(deadline, timeout_s)
                if on_wait is not None:
                    on_wait()

    def _with_partial(self, error: _EndT) -> _EndT:
        last: Any = self._connection.xrevrange(stream_key(self.job_id), count=_END_AMONG_LAST)
        error.partial = partial_result(fields for _, fields in last)
        return error

    def _say_that_somebody_waits(self) -> None:
        if self._awaited and time.monotonic() >= self._renew_at:
            self._renew_at = time.monotonic() + _RENEW_S
            self._connection.set(jobs.awaited_key(self.job_id), 1, ex=contract.ABANDONED_AFTER_S)


class Producer:
    """Enqueues jobs at one server.

    `redis_url`: the server; without it `IMPETUS_REDIS_URL`, else the server that `impetus-worker run` keeps on this
    machine. `connection`: a redis-py client to use instead. Times in seconds. Safe to share between threads.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        connection: Redis | None = None,
        timeout_s: int = contract.DEFAULT_TIMEOUT_S,
        result_ttl_s: int = contract.DEFAULT_RESULT_TTL_S,
        failure_ttl_s: int = contract.DEFAULT_FAILURE_TTL_S,
    ) -> None:
        self.connection = connection if connection is not None else connect(redis_url)
        self.options = jobs.JobOptions(timeout_s, result_ttl_s, failure_ttl_s)

    def embed(
        self,
        input: str | Sequence[str],  # noqa: A002 - the contract's name for it
        *,
        model: str | None = None,
        dimensions: int | None = None,
        input_type: InputType | None = None,
        truncate: bool = True,
        encoding_format: EncodingFormat = "base64",
        bulk: bool = False,
    ) -> EmbeddingHandle:
        """Enqueues one job that embeds a text, or up to 2,048 texts. `bulk`: nobody is waiting for it.

        Raises `InvalidRequestError` at once for what a worker would refuse.
        """
        texts = input if isinstance(input, str) else list(input)
        payload = embedding_payload(texts, model, dimensions, input_type, truncate, encoding_format)
        return self._enqueue_embeddings([payload], bulk)[0][0]

    def embed_many(
        self,
        texts: Iterable[str],
        *,
        texts_per_job: int = 64,
        max_backlog_jobs: int = 256,
        model: str | None = None,
        dimensions: int | None = None,
        input_type: InputType | None = None,
        truncate: bool = True,
        encoding_format: EncodingFormat = "raw",
        bulk: bool = True,
    ) -> Iterator[EmbeddingHandle]:
        """Splits texts into jobs, and yields the jobs' handles in the order of the texts.

        Results lie in Redis as `raw` vectors, which take the least room; RQ itself does not show those: ask for
        `base64` where results are read by other means than these handles.

        Reads `texts` lazily and keeps at most about `max_backlog_jobs` jobs on the queue, so that it may be endless:
        it goes on enqueueing as you take handles, and waits while workers are behind.
        """
        queue = contract.EMBEDDING_BULK_QUEUE if bulk else contract.EMBEDDING_QUEUE
        ahead: deque[EmbeddingHandle] = deque()
        payloads = (
            embedding_payload(part, model, dimensions, input_type, truncate, encoding_format)
            for part in _parts(texts, texts_per_job, contract.MAX_TEXT_BYTES)
        )
        for group in _parts(payloads, min(_JOBS_PER_ROUND_TRIP, max_backlog_jobs)):
            handles, queued = self._enqueue_embeddings(group, bulk)
            ahead.extend(handles)
            while len(ahead) >= max_backlog_jobs:
                yield ahead.popleft()
            while queued >= max_backlog_jobs:
                # The handles go first: whoever waits for one of them is what empties the queue.
                if ahead:
                    yield ahead.popleft()
                else:
                    time.sleep(_BACKLOG_POLL_S)
                with server_errors():
                    queued = int(self.connection.llen(jobs.queue_key(queue)))
        yield from ahead

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        logprobs: bool = False,
        response_format: Mapping[str, Any] | None = None,
        stream: bool = False,
        cancel_if_abandoned: bool = False,
        bulk: bool = False,
    ) -> GenerationHandle:
        """Enqueues one job that continues `prompt` or answers `messages`.

        `response_format`: `{"type": "json_object"}`, or `{"type": "json_schema", "json_schema": {"schema": ...}}`.
        `stream`: so that the handle's `stream()` has the text while it is made. `cancel_if_abandoned`: the job ends
        `ABANDONED_AFTER_S` (30 s) after the last `result()` or `stream()` that waited for it, the first of which has
        to come within that time.

        What is not given takes the contract's default. Raises `InvalidRequestError` at once for what a worker would
        refuse.
        """
        fields = {
            "prompt": prompt,
            "messages": None if messages is None else [dict(message) for message in messages],
            "model": model,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "stop": stop if stop is None or isinstance(stop, str) else list(stop),
            "seed": seed,
            "logprobs": logprobs or None,
            "response_format": None if response_format is None else dict(response_format),
            "stream": stream or None,
            "cancel_if_abandoned": cancel_if_abandoned or None,
        }
        payload = {name: value for name, value in fields.items() if value is not None}
        parse_request(GenerationRequest, payload)
        queue = contract.GENERATION_BULK_QUEUE if bulk else contract.GENERATION_QUEUE
        with server_errors():
            job_id = jobs.new_id()
            if cancel_if_abandoned:
                # Before there is a job that a worker could find abandoned.
                self.connection.set(jobs.awaited_key(job_id), 1, ex=contract.ABANDONED_AFTER_S)
            jobs.enqueue(self.connection, queue, contract.GENERATE_FUNCTION, {job_id: payload}, self.options)
        return GenerationHandle(job_id, self.connection, awaited=cancel_if_abandoned)

    def handle(self, job_id: str) -> EmbeddingHandle | GenerationHandle:
        """The handle of a job enqueued earlier, here or elsewhere."""
        with server_errors():
            origin = self.connection.hget(jobs.job_key(job_id), "origin")
        if origin is None:
            raise JobNotFoundError(f"there is no job {job_id}, or its time to live ran out")
        generation = _text(origin) in contract.ROLE_QUEUES["generation"]
        return (GenerationHandle if generation else EmbeddingHandle)(job_id, self.connection)

    def _enqueue_embeddings(
        self, payloads: Sequence[Mapping[str, Any]], bulk: bool
    ) -> tuple[list[EmbeddingHandle], int]:
        queue = contract.EMBEDDING_BULK_QUEUE if bulk else contract.EMBEDDING_QUEUE
        with server_errors():
            by_id = {jobs.new_id(): payload for payload in payloads}
            queued = jobs.enqueue(self.connection, queue, contract.EMBED_FUNCTION, by_id, self.options)
        return [EmbeddingHandle(job_id, self.connection) for job_id in by_id], queued


def embedding_payload(
    texts: str | list[str],
    model: str | None,
    dimensions: int | None,
    input_type: InputType | None,
    truncate: bool,
    encoding_format: EncodingFormat = "base64",
) -> dict[str, Any]:
    """An `EmbeddingRequest` as it is sent; raises `InvalidRequestError` for what a worker would refuse."""
    fields = {"input": texts, "model": model, "dimensions": dimensions, "input_type": input_type}
    payload = {name: value for name, value in fields.items() if value is not None}
    if not truncate:
        payload["truncate"] = False
    if encoding_format != "base64":
        payload["encoding_format"] = encoding_format
    parse_request(EmbeddingRequest, payload)
    return payload


ItemT = TypeVar("ItemT")


def _parts(items: Iterable[ItemT], size: int, characters: float = float("inf")) -> Iterator[list[ItemT]]:
    """Lists of `size` items, or fewer where those that are texts would make more than so many characters."""
    part: list[ItemT] = []
    held = 0
    for item in items:
        length = len(item) if isinstance(item, str) else 0
        if part and (len(part) == size or held + length > characters):
            yield part
            part, held = [], 0
        part.append(item)
        held += length
    if part:
        yield part


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


def _left_s(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
