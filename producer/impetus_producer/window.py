"""The window of `embed_documents`: the jobs that are in Redis now, and what became of their documents.

Nothing that was read is lost, whatever becomes of the server; what the server lost is sent again.
"""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from . import contract, jobs
from .contract import EmbeddingRequest, EmbeddingResult
from .documents import Document, FailedDocument
from .errors import (
    ImpetusError,
    InvalidRequestError,
    JobFailedError,
    ServerDataError,
    ServerError,
    ServerFullError,
    UnreadableResultError,
)
from .parsing import parse_request
from .requests import embedding_payload
from .servers.answers import Trouble, known_answers, trouble
from .servers.troubles import server_errors
from .talks.results import as_text
from .talks.steps import directly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np

    from .client import Producer
    from .documents import DocumentId
    from .requests import InputType

_QUEUE = contract.EMBEDDING_BULK_QUEUE
_BLOCK_MS = 500
_MOST_LOSSES = 5
"""So often is a job sent again that Redis lost. A server that evicts loses them for ever."""
_REQUEST_FIELDS = frozenset(EmbeddingRequest.model_fields) - {"input"}


@dataclass(frozen=True, slots=True)
class EmbeddedDocument:
    """A document's vector, float32, and by which model."""

    id: DocumentId
    vector: np.ndarray | list[float]
    model: str
    fingerprint: str


_AnswerT = TypeVar("_AnswerT")
Embedded: TypeAlias = EmbeddedDocument | FailedDocument


@dataclass(frozen=True, slots=True)
class Options:
    model: str | None
    dimensions: int | None
    input_type: InputType | None
    truncate: bool

    def payload(self, texts: list[str]) -> dict[str, Any]:
        return embedding_payload(texts, self.model, self.dimensions, self.input_type, self.truncate, "raw")


@dataclass(slots=True, eq=False)
class _Batch:
    """Documents that were sent together, and what became of each so far."""

    documents: Sequence[Document | FailedDocument]
    outcomes: list[Embedded | None]
    missing: int

    def settle(self, index: int, outcome: Embedded) -> None:
        self.outcomes[index] = outcome
        self.missing -= 1


@dataclass(slots=True)
class _Job:
    """One job in Redis: which of a batch's documents it carries, and how far its results were read."""

    batch: _Batch
    indices: Sequence[int]
    seen: Any = "0-0"
    losses: int = 0


@dataclass(slots=True)
class Window:
    """The jobs that are in Redis now, and the batches they belong to, oldest first."""

    producer: Producer
    options: Options
    while_away: Callable[[], None] | None
    batches: deque[_Batch] = field(default_factory=deque)
    sent: dict[str, _Job] = field(default_factory=dict)
    unsent: list[_Job] = field(default_factory=list)
    """For which the server had no room so far."""
    full_since: float | None = None
    """By the monotonic clock, as long as it takes nothing and no result comes."""
    ended: list[str] = field(default_factory=list)
    succeeded: bool = False

    @property
    def open(self) -> int:
        return len(self.batches)

    @property
    def waiting(self) -> bool:
        return bool(self.sent or self.unsent) and self.batches[0].missing > 0

    def _ask(
        self, question: Callable[[], _AnswerT], never_for: type[ServerError] | tuple[type[ServerError], ...] = ()
    ) -> _AnswerT:
        return self.producer.patience.ask(
            self.producer.connection, question, never_for=never_for, while_away=self.while_away
        )

    def send(self, parts: Iterable[Sequence[Document | FailedDocument]]) -> None:
        """Enqueues a job for each part, in one round trip; settles at once what must not be sent."""
        wanted = []
        for part in parts:
            batch = _Batch(part, [None] * len(part), len(part))
            self.batches.append(batch)
            if indices := self._admit(batch):
                wanted.append(_Job(batch, indices))
        self._enqueue(wanted)

    def _admit(self, batch: _Batch) -> list[int]:
        indices = []
        for index, document in enumerate(batch.documents):
            if isinstance(document, FailedDocument):
                batch.settle(index, document)
            elif (reason := _refusal(document.text)) is not None:
                batch.settle(index, FailedDocument(document.id, reason))
            else:
                indices.append(index)
        return indices

    def _enqueue(self, wanted: Sequence[_Job]) -> None:
        self.unsent += wanted
        if not self.unsent:
            return
        # A server that is full gets room by our reading what it has made for us, and else is waited for.
        others = bool(self.sent)
        by_id = {jobs.new_id(): job for job in self.unsent}
        payloads = {
            job_id: self.options.payload([_text(job.batch, index) for index in job.indices])
            for job_id, job in by_id.items()
        }
        # Noted first: who presses Ctrl-C meanwhile leaves no job behind.
        self.sent.update(by_id)
        self.unsent = []
        question = jobs.enqueueing(_QUEUE, contract.EMBED_FUNCTION, payloads, self.producer.options)
        enqueue = partial(question.put_to, self.producer.connection)
        try:
            self._ask(enqueue, never_for=ServerFullError if others else ())
        except ServerFullError:
            self.full_since = self.full_since or time.monotonic()
            if not others or time.monotonic() - self.full_since > self.producer.patience.limit_s:
                raise
            self.unsent += [self.sent.pop(job_id) for job_id in by_id]
        else:
            self.full_since = None

    def finished(self) -> Iterator[Embedded]:
        """What is known of the oldest batches, up to the first that is not complete."""
        while self.batches and not self.batches[0].missing:
            for outcome in self.batches.popleft().outcomes:
                assert outcome is not None
                yield outcome

    def collect(self) -> bool:
        """Waits for results and takes all there are, in one round trip. False when none came."""
        self._enqueue([])
        streams: Any = {jobs.results_key(job_id): job.seen for job_id, job in self.sent.items()}
        try:
            answer: Any = self._ask(lambda: self.producer.connection.xread(streams, block=_BLOCK_MS))
        except ServerDataError as error:
            self._end_overwritten(error)
            return True
        if not answer:
            self._look_for_the_lost()
            return False
        self.full_since = None
        again: list[_Job] = []
        prefix = len(jobs.results_key(""))
        for key, entries in answer:
            job_id = (key.decode() if isinstance(key, bytes) else key)[prefix:]
            for entry_id, fields in entries:
                try:
                    outcome = jobs.decode_outcome(job_id, fields)
                except UnreadableResultError as error:
                    again += self._end_badly(job_id, error)
                    break
                if outcome.final:
                    again += self._end(job_id, outcome)
                    break
                self.sent[job_id].seen = entry_id
        self._enqueue(again)
        # A few at a time: what is read but not yet deleted is a fraction of the window.
        if len(self.ended) >= 8:
            self._discard_ended()
        return True

    def _end_badly(self, job_id: str, error: ImpetusError) -> list[_Job]:
        self.ended.append(job_id)
        return self._failed(self.sent.pop(job_id), error)

    def _end_overwritten(self, error: ServerDataError) -> None:
        """Ends the jobs in whose results' place something else lies, for which the others cannot be read together."""
        waiting = list(self.sent)
        wrong = self._ask(partial(self._of_another_type, waiting))
        overwritten = list(compress(waiting, wrong))
        if not overwritten:
            raise error
        again: list[_Job] = []
        for job_id in overwritten:
            again += self._end_badly(job_id, UnreadableResultError(job_id, str(error)))
        self._discard_ended()
        self._enqueue(again)

    def _of_another_type(self, job_ids: Sequence[str]) -> list[bool]:
        """Whether what lies in the place of a job's results is no stream."""
        with self.producer.connection.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.xread({jobs.results_key(job_id): "$"})
            answers = pipeline.execute(raise_on_error=False)
        wrong = [isinstance(answer, Exception) for answer in answers]
        for answer in answers:
            if isinstance(answer, Exception) and trouble(answer) is not Trouble.DATA:
                raise answer
        return wrong

    def _end(self, job_id: str, outcome: jobs.Outcome) -> list[_Job]:
        """Settles the documents of a job that ended, or returns what is to be tried again."""
        job = self.sent.pop(job_id)
        self.ended.append(job_id)
        if outcome.error is not None:
            if self._was_stopped(job_id):
                self._give_up(job, "its job was stopped while it ran", retryable=True)
                return []
            return self._failed(job, outcome.error)
        try:
            result = jobs.read_result(job_id, EmbeddingResult, outcome.return_value)
        except UnreadableResultError as error:
            return self._failed(job, error)
        vectors = result.vectors
        if len(vectors) != len(job.indices):
            return self._failed(
                job, ImpetusError(f"the worker sent {len(vectors)} vectors for {len(job.indices)} texts")
            )
        self.succeeded = True
        model, fingerprint = result.model, result.provenance.fingerprint
        sound = _all_finite(vectors)
        for index, vector in zip(job.indices, vectors, strict=True):
            document_id = job.batch.documents[index].id
            if sound or _all_finite([vector]):
                job.batch.settle(index, EmbeddedDocument(document_id, vector, model, fingerprint))
            else:
                job.batch.settle(index, FailedDocument(document_id, "the worker's vector holds numbers not finite"))
        return []

    def _failed(self, job: _Job, error: ImpetusError) -> list[_Job]:
        field_name, colon, _ = str(error).partition(":")
        if isinstance(error, JobFailedError) and colon and field_name in _REQUEST_FIELDS and not self.succeeded:
            # It is the options that are refused, and every job has the same ones.
            raise error
        if len(job.indices) > 1:
            return [_Job(job.batch, [index]) for index in job.indices]
        self._give_up(job, str(error).removeprefix("input: ").replace("item 0 ", "the text ", 1))
        return []

    def _was_stopped(self, job_id: str) -> bool:
        def status() -> Any:
            with self.producer.connection.pipeline(transaction=False) as pipeline:
                pipeline.hget(jobs.job_key(job_id), "status")
                return known_answers(pipeline.execute(raise_on_error=False))[0]

        return self._ask(status) in (b"stopped", "stopped")

    def _give_up(self, job: _Job, reason: str, retryable: bool = False) -> None:
        for index in job.indices:
            document_id = job.batch.documents[index].id
            job.batch.settle(index, FailedDocument(document_id, reason, retryable=retryable))

    def _look_for_the_lost(self) -> None:
        """Ends what will never have a result: jobs cancelled by others, or that Redis no longer knows."""
        waiting = list(self.sent)
        answers = self._ask(partial(self._statuses, waiting))
        again: list[_Job] = []
        for job_id, status, has_result in zip(waiting, answers[::2], answers[1::2], strict=True):
            if has_result:
                continue
            word = None if status is None else as_text(status)
            if word in ("canceled", "stopped"):
                self._give_up(self.sent.pop(job_id), "its job was cancelled", retryable=True)
                self.ended.append(job_id)
            elif word in (None, "finished", "failed"):
                again += self._lost(self.sent.pop(job_id))
                self.ended.append(job_id)
        self._enqueue(again)

    def _statuses(self, job_ids: Sequence[str]) -> list[Any]:
        with self.producer.connection.pipeline(transaction=True) as pipeline:
            for job_id in job_ids:
                pipeline.hget(jobs.job_key(job_id), "status")
                pipeline.exists(jobs.results_key(job_id))
            return known_answers(pipeline.execute(raise_on_error=False))

    def _lost(self, job: _Job) -> list[_Job]:
        job.losses += 1
        if job.losses <= _MOST_LOSSES:
            job.seen = "0-0"
            return [job]
        self._give_up(job, f"its job was lost from Redis {job.losses} times", retryable=True)
        return []

    def _discard_ended(self) -> None:
        self._ask(self._discard)
        self.ended = []

    def _discard(self) -> None:
        directly(self.producer.connection, jobs.discarding(self.ended, _QUEUE))

    def forget(self) -> None:
        """Leaves the jobs to their time to live."""
        self.sent.clear()
        self.ended.clear()

    def close(self) -> None:
        """Withdraws the jobs that still wait, and deletes what was read. Jobs that run end by themselves."""
        # What ended the run must not be hidden by a server that goes now.
        with suppress(ServerError), server_errors():
            waiting = list(self.sent)
            with self.producer.connection.pipeline(transaction=False) as pipeline:
                for job_id in waiting:
                    pipeline.lrem(jobs.queue_key(_QUEUE), -1, job_id)
                removed = known_answers(pipeline.execute(raise_on_error=False))
            # Whose id was still in the queue, no worker has it.
            self.ended += [job_id for job_id, count in zip(waiting, removed, strict=True) if count]
            if self.ended:
                self._discard()


def _refusal(text: str) -> str | None:
    """Why the contract does not take this text."""
    # Most texts are short ASCII, and asking the contract costs twenty times as much.
    if text.isascii() and len(text) <= contract.MAX_TEXT_BYTES:
        return None
    try:
        parse_request(EmbeddingRequest, {"input": text})
    except InvalidRequestError as error:
        return str(error).removeprefix("input: ")
    return None


def _text(batch: _Batch, index: int) -> str:
    document = batch.documents[index]
    assert isinstance(document, Document)
    return document.text


def _all_finite(vectors: Any) -> bool:
    if isinstance(vectors, list):
        return all(_all_finite(row) if not isinstance(row, float) else math.isfinite(row) for row in vectors)
    import numpy as np

    return bool(np.isfinite(vectors).all())
