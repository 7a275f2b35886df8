"""The producer: puts requests on the queues and hands out what will become their results.

Knows the contract and Redis. Knows no model, no device, no file.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from . import contract, jobs
from .contract import EmbeddingRequest, GenerationRequest
from .errors import InvalidRequestError, JobNotFoundError
from .handles import EmbeddingHandle, GenerationHandle, as_text, named
from .parsing import parse_request
from .reading.until_error import UntilError
from .servers.patience import Patience
from .servers.troubles import adopt, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from redis import Redis

InputType = Literal["query", "document"]
EncodingFormat = Literal["base64", "float", "raw"]
_AnswerT = TypeVar("_AnswerT")
MOST_CHARACTERS = 32_000_000
"""Of texts that are held at once, here and in Redis."""
CHARACTERS_PER_JOB = 1_000_000
"""Jobs are closed early past this. Longer texts travel alone."""
_JOBS_PER_ROUND_TRIP = 32
_BACKLOG_POLL_S = 0.05


class Producer:
    """Enqueues jobs at one server.

    `redis_url`: the server; without it `IMPETUS_REDIS_URL`, else the server that `impetus-worker run` keeps on this
    machine. `connection`: a redis-py client whose server to use instead; connections of our own are made from its
    settings. `patience_s`: how long everything here and in the handles waits for a server that restarts, fails over or
    is away, each time; without it `IMPETUS_PATIENCE_S`, else 300. Only making the producer does not wait. What waited
    is not enqueued twice. Times in seconds. Safe to share between threads.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        connection: Redis | None = None,
        timeout_s: int = contract.DEFAULT_TIMEOUT_S,
        result_ttl_s: int = contract.DEFAULT_RESULT_TTL_S,
        failure_ttl_s: int = contract.DEFAULT_FAILURE_TTL_S,
        patience_s: float | None = None,
    ) -> None:
        self.connection = adopt(connection) if connection is not None else connect(redis_url)
        self.patience = Patience(patience_s)
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

        Reads `texts` lazily and keeps at most about `max_backlog_jobs` jobs, and 32 million characters, on the queue,
        so that it may be endless: it goes on enqueueing as you take handles, and waits while workers are behind.

        Where `texts` raises, or holds what no worker would take, the handles of all texts before are yielded first.
        Raises `InvalidRequestError` at once for options that no job could have, and for a lone string.
        """
        _check_many(texts, texts_per_job, max_backlog_jobs)
        payload = partial(
            embedding_payload,
            model=model,
            dimensions=dimensions,
            input_type=input_type,
            truncate=truncate,
            encoding_format=encoding_format,
        )
        payload(["no text in particular"])
        return self._embed_many(UntilError(_checked(texts)), texts_per_job, max_backlog_jobs, payload, bulk)

    def _embed_many(
        self,
        texts: UntilError[str],
        texts_per_job: int,
        max_backlog_jobs: int,
        payload: Callable[[list[str]], dict[str, Any]],
        bulk: bool,
    ) -> Iterator[EmbeddingHandle]:
        queue = contract.EMBEDDING_BULK_QUEUE if bulk else contract.EMBEDDING_QUEUE
        ahead: deque[EmbeddingHandle] = deque()
        # What the last jobs that can still be on the queue weigh, the newest last.
        sizes: deque[int] = deque(maxlen=max_backlog_jobs)
        parts = _parts(texts, texts_per_job, CHARACTERS_PER_JOB, len)
        for group in _parts(parts, min(_JOBS_PER_ROUND_TRIP, max_backlog_jobs), MOST_CHARACTERS // 4, _characters):
            handles, queued = self._enqueue_embeddings([payload(part) for part in group], bulk)
            ahead.extend(handles)
            sizes.extend(map(_characters, group))
            while len(ahead) >= max_backlog_jobs:
                yield ahead.popleft()
            while queued >= max_backlog_jobs or sum(islice(reversed(sizes), queued)) >= MOST_CHARACTERS:
                # The handles go first: whoever waits for one of them is what empties the queue.
                if ahead:
                    yield ahead.popleft()
                else:
                    time.sleep(_BACKLOG_POLL_S)
                queued = self._ask(lambda: int(self.connection.llen(jobs.queue_key(queue))))
        yield from ahead
        if texts.error is not None:
            raise texts.error

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        logprobs: bool | None = None,
        response_format: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        special_tokens: Literal["control", "text"] | None = None,
        stream: bool | None = None,
        cancel_if_abandoned: bool = False,
        bulk: bool = False,
        **more: Any,
    ) -> GenerationHandle:
        """Enqueues one job that continues `prompt` or answers `messages`.

        `response_format`: `{"type": "json_object"}`, or `{"type": "json_schema", "json_schema": {"schema": ...}}`.
        `special_tokens="text"`: what messages hold is text, though it spells the model's own control tokens.
        `stream`: so that the handle's `stream()` has the text while it is made. `cancel_if_abandoned`: the job ends
        `ABANDONED_AFTER_S` (30 s) after the last `result()` or `stream()` that waited for it, the first of which has
        to come within that time. `more`: any other field of `contract.GenerationRequest`, so that the body of a chat
        completion for OpenAI can be given as it is: `generate(**body)`.

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
            "tools": None if tools is None else [dict(tool) for tool in tools],
            "special_tokens": special_tokens,
            "stream": stream or None,
            "cancel_if_abandoned": cancel_if_abandoned or None,
            **more,
        }
        payload = {name: value for name, value in fields.items() if value is not None}
        parse_request(GenerationRequest, payload)
        queue = contract.GENERATION_BULK_QUEUE if bulk else contract.GENERATION_QUEUE
        job_id = jobs.new_id()
        if cancel_if_abandoned:
            # Before there is a job that a worker could find abandoned.
            self._ask(lambda: self.connection.set(jobs.awaited_key(job_id), 1, ex=contract.ABANDONED_AFTER_S))
        self.enqueue(queue, contract.GENERATE_FUNCTION, {job_id: payload})
        return GenerationHandle(job_id, self.connection, self.patience, awaited=cancel_if_abandoned)

    def handle(self, job_id: str) -> EmbeddingHandle | GenerationHandle:
        """The handle of a job enqueued earlier, here or elsewhere."""
        # Redis knows bytes: what is no text, as a command line may hold, is nobody's id.
        is_text = not any("\ud800" <= each <= "\udfff" for each in job_id)
        with named(job_id):
            origin = self._ask(lambda: self.connection.hget(jobs.job_key(job_id), "origin")) if is_text else None
        if origin is None:
            raise JobNotFoundError(f"there is no job {job_id}, or its time to live ran out")
        generation = as_text(origin) in contract.ROLE_QUEUES["generation"]
        return (GenerationHandle if generation else EmbeddingHandle)(job_id, self.connection, self.patience)

    def enqueue(self, queue: str, function: str, payloads: Mapping[str, Mapping[str, Any]]) -> int:
        """Enqueues payloads that were checked, by their jobs' ids; returns the queue's new length.

        May be asked again with the same ids: what is there stays as it is.
        """
        return self._ask(partial(jobs.enqueue, self.connection, queue, function, payloads, self.options))

    def _ask(self, question: Callable[[], _AnswerT]) -> _AnswerT:
        return self.patience.ask(self.connection, question)

    def _enqueue_embeddings(
        self, payloads: Sequence[Mapping[str, Any]], bulk: bool
    ) -> tuple[list[EmbeddingHandle], int]:
        queue = contract.EMBEDDING_BULK_QUEUE if bulk else contract.EMBEDDING_QUEUE
        by_id = {jobs.new_id(): payload for payload in payloads}
        queued = self.enqueue(queue, contract.EMBED_FUNCTION, by_id)
        return [EmbeddingHandle(job_id, self.connection, self.patience) for job_id in by_id], queued


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


def text_refusal(text: str) -> str | None:
    """Why the contract does not take this text."""
    # Most texts are short ASCII, and asking the contract costs twenty times as much.
    if text.isascii() and len(text) <= contract.MAX_TEXT_BYTES:
        return None
    try:
        parse_request(EmbeddingRequest, {"input": text})
    except InvalidRequestError as error:
        return str(error).removeprefix("input: ")
    return None


def _check_many(texts: Any, texts_per_job: Any, max_backlog_jobs: Any) -> None:
    if isinstance(texts, str | bytes | bytearray) or not hasattr(texts, "__iter__"):
        raise InvalidRequestError(f"texts must be an iterable of strings, not a {type(texts).__name__}: give a list")
    for name, value, most in (
        ("texts_per_job", texts_per_job, contract.MAX_TEXTS_PER_JOB),
        ("max_backlog_jobs", max_backlog_jobs, None),
    ):
        if not isinstance(value, int) or value < 1 or (most is not None and value > most):
            limits = "at least 1" if most is None else f"from 1 to {most:,}"
            raise InvalidRequestError(f"{name} must be a whole number {limits}, not {value!r}")


def _checked(texts: Iterable[Any]) -> Iterator[str]:
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidRequestError(f"texts: item {index} is a {type(text).__name__}, not a string")
        if (reason := text_refusal(text)) is not None:
            raise InvalidRequestError(f"texts: item {index}: {reason}")
        yield text


ItemT = TypeVar("ItemT")


def _parts(items: Iterable[ItemT], size: int, most: int, weight: Callable[[ItemT], int]) -> Iterator[list[ItemT]]:
    """Lists of `size` items, or fewer where together they would weigh more than `most`."""
    part: list[ItemT] = []
    held = 0
    for item in items:
        weighs = weight(item)
        if part and (len(part) == size or held + weighs > most):
            yield part
            part, held = [], 0
        part.append(item)
        held += weighs
    if part:
        yield part


def _characters(texts: Iterable[str]) -> int:
    return sum(map(len, texts))
