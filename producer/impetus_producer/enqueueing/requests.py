"""What may be asked for, and the jobs it becomes, whoever enqueues them: a thread or a task.

Knows the contract. Knows no model, no device, no file.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from .. import contract
from ..contract import EmbeddingRequest, GenerationRequest, RerankRequest
from ..reading.until_error import UntilError
from ..servers.patience import Patience
from ..talks.steps import Pause, Piece, Question, Vigil
from . import jobs
from .parsing import parse_request
from .texts import CHARACTERS_PER_JOB, MOST_CHARACTERS, characters, check_many, checked, parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ..talks.steps import Talk

InputType = Literal["query", "document"]
EncodingFormat = Literal["base64", "float", "raw"]
Output = Literal["dense", "sparse"]
_JOBS_PER_ROUND_TRIP = 32
_BACKLOG_POLL_S = 0.05

EmbeddingT = TypeVar("EmbeddingT")
EmbeddingsT = TypeVar("EmbeddingsT")
GenerationT = TypeVar("GenerationT")
RerankingT = TypeVar("RerankingT")


class Requests(Generic[EmbeddingT, EmbeddingsT, GenerationT, RerankingT]):
    """Checks what is asked for, and leaves it to who waits how to enqueue it."""

    def __init__(self, timeout_s: int, result_ttl_s: int, failure_ttl_s: int, patience_s: float | None) -> None:
        self.patience = Patience(patience_s)
        self.options = jobs.JobOptions(timeout_s, result_ttl_s, failure_ttl_s)

    def new_id(self) -> str:
        """Of a job to be enqueued here."""
        return jobs.new_id()

    def _embedding(self, payload: Mapping[str, Any], bulk: bool) -> EmbeddingT:
        raise NotImplementedError

    def _embeddings(self, talk: Talk[None]) -> EmbeddingsT:
        raise NotImplementedError

    def _generation(self, payload: Mapping[str, Any], bulk: bool) -> GenerationT:
        raise NotImplementedError

    def _reranking(self, payload: Mapping[str, Any], bulk: bool) -> RerankingT:
        raise NotImplementedError

    def embed(
        self,
        input: str | Sequence[str],  # noqa: A002 - the contract's name for it
        *,
        model: str | None = None,
        dimensions: int | None = None,
        input_type: InputType | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = True,
        encoding_format: EncodingFormat = "base64",
        output: Output = "dense",
        chunks: Sequence[Sequence[tuple[int, int]]] | None = None,
        bulk: bool = False,
    ) -> EmbeddingT:
        """Enqueues one job that embeds a text, or up to 2,048 texts. `bulk`: nobody is waiting for it.

        `output="sparse"`: the result's `sparse` holds vectors of token ids and weights, if the model has a head for it.

        `input_type`, `prompt_name` and `prompt`, of which one may be given, say what is put before each text: the
        model's own prompt for queries or documents, its prompt of that name, or that text.

        `chunks`: for each text where its chunks begin and end, in characters: then there is a vector for each of them,
        made of the whole text (`contract.EmbeddingRequest.chunks`).

        Raises `InvalidRequestError` at once for what a worker would refuse.
        """
        texts = input if isinstance(input, str) else list(input)
        payload = embedding_payload(
            texts,
            model,
            dimensions,
            input_type,
            truncate,
            encoding_format,
            output,
            chunks,
            prompt_name=prompt_name,
            prompt=prompt,
        )
        return self._embedding(payload, bulk)

    def embed_many(
        self,
        texts: Iterable[str],
        *,
        texts_per_job: int = 64,
        max_backlog_jobs: int = 256,
        model: str | None = None,
        dimensions: int | None = None,
        input_type: InputType | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate: bool = True,
        encoding_format: EncodingFormat | None = None,
        output: Output = "dense",
        bulk: bool = True,
    ) -> EmbeddingsT:
        """Splits texts into jobs, and yields the jobs' handles in the order of the texts.

        Dense vectors lie in Redis as `raw` ones, which take the least room; RQ itself does not show those: ask for
        `base64` where results are read by other means than these handles.

        Reads `texts` lazily and keeps at most about `max_backlog_jobs` jobs, and 32 million characters, on the queue,
        so that it may be endless: it goes on enqueueing as you take handles, and waits while workers are behind.

        Where `texts` raises, or holds what no worker would take, the handles of all texts before are yielded first.
        Raises `InvalidRequestError` at once for options that no job could have, and for a lone string.
        """
        check_many(texts, texts_per_job, max_backlog_jobs)
        payload = partial(
            embedding_payload,
            model=model,
            dimensions=dimensions,
            input_type=input_type,
            prompt_name=prompt_name,
            prompt=prompt,
            truncate=truncate,
            encoding_format=encoding_format or ("raw" if output == "dense" else "base64"),
            output=output,
        )
        payload(["no text in particular"])
        source = UntilError(checked(texts))
        return self._embeddings(self._enqueueing_many(source, payload, texts_per_job, max_backlog_jobs, bulk))

    def rerank(
        self,
        query: str,
        documents: Sequence[str | Mapping[str, str]],
        *,
        top_n: int | None = None,
        return_documents: bool = False,
        model: str | None = None,
        max_tokens_per_doc: int | None = None,
        truncate: bool = True,
        bulk: bool = False,
    ) -> RerankingT:
        """Enqueues one job that orders up to 2,048 documents by how relevant they are to `query`. `bulk`: nobody is
        waiting for it. Some worker has to run with `--rerank-model`.

        Raises `InvalidRequestError` at once for what a worker would refuse.
        """
        fields = {
            "query": query,
            "documents": documents if isinstance(documents, str) else list(documents),
            "top_n": top_n,
            "return_documents": return_documents or None,
            "model": model,
            "max_tokens_per_doc": max_tokens_per_doc,
            "truncate": None if truncate else False,
        }
        payload = {name: value for name, value in fields.items() if value is not None}
        parse_request(RerankRequest, payload)
        return self._reranking(payload, bulk)

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
    ) -> GenerationT:
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
        payload = GenerationRequest.what_says_something(fields)
        parse_request(GenerationRequest, payload)
        return self._generation(payload, bulk)

    def _enqueueing_one(self, role: str, payload: Mapping[str, Any], bulk: bool) -> Talk[str]:
        """Enqueues a payload that was checked; its job's id."""
        job_id = self.new_id()
        if payload.get("cancel_if_abandoned"):
            # Before there is a job that a worker could find abandoned.
            yield Question(Vigil(jobs.awaited_key(job_id)).say)
        yield self._enqueueing(role, {job_id: payload}, bulk)
        return job_id

    def _enqueueing_many(
        self,
        texts: UntilError[str],
        payload: Callable[[list[str]], dict[str, Any]],
        texts_per_job: int,
        max_backlog_jobs: int,
        bulk: bool,
    ) -> Talk[None]:
        """Enqueues embeddings, and has the jobs' ids for pieces."""
        queue = _queue("embedding", bulk)
        ahead: deque[str] = deque()
        # What the last jobs that can still be on the queue weigh, the newest last.
        sizes: deque[int] = deque(maxlen=max_backlog_jobs)
        in_jobs = parts(texts, texts_per_job, CHARACTERS_PER_JOB, len)
        for group in parts(in_jobs, min(_JOBS_PER_ROUND_TRIP, max_backlog_jobs), MOST_CHARACTERS // 4, characters):
            by_id = {self.new_id(): payload(part) for part in group}
            queued: int = yield self._enqueueing("embedding", by_id, bulk)
            ahead.extend(by_id)
            sizes.extend(map(characters, group))
            while len(ahead) >= max_backlog_jobs:
                yield Piece(ahead.popleft())
            while queued >= max_backlog_jobs or sum(islice(reversed(sizes), queued)) >= MOST_CHARACTERS:
                # The handles go first: whoever waits for one of them is what empties the queue.
                yield Piece(ahead.popleft()) if ahead else Pause(_BACKLOG_POLL_S)
                queued = yield Question(lambda client: client.llen(jobs.queue_key(queue)))
        while ahead:
            yield Piece(ahead.popleft())
        if texts.error is not None:
            raise texts.error

    def _enqueueing(self, role: str, payloads: Mapping[str, Mapping[str, Any]], bulk: bool) -> Question[int]:
        return jobs.enqueueing(_queue(role, bulk), contract.ROLE_FUNCTIONS[role], payloads, self.options)


def _queue(role: str, bulk: bool) -> str:
    interactive, for_bulk = contract.ROLE_QUEUES[role]
    return for_bulk if bulk else interactive


def embedding_payload(
    texts: str | list[str],
    model: str | None,
    dimensions: int | None,
    input_type: InputType | None,
    truncate: bool,
    encoding_format: EncodingFormat = "base64",
    output: Output = "dense",
    chunks: Sequence[Sequence[tuple[int, int]]] | None = None,
    *,
    prompt_name: str | None = None,
    prompt: str | None = None,
) -> dict[str, Any]:
    """An `EmbeddingRequest` as it is sent; raises `InvalidRequestError` for what a worker would refuse."""
    fields = {
        "input": texts,
        "model": model,
        "dimensions": dimensions,
        "input_type": input_type,
        "prompt_name": prompt_name,
        "prompt": prompt,
    }
    payload: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    if not truncate:
        payload["truncate"] = False
    if encoding_format != "base64":
        payload["encoding_format"] = encoding_format
    if output != "dense":
        payload["output"] = output
    if chunks is not None:
        payload["chunks"] = [list(map(list, spans)) for spans in chunks]
    parse_request(EmbeddingRequest, payload)
    return payload
