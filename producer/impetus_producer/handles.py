"""Handles: a job by its id, and what becomes of it: its status, its text while it is made, its result, its end.

Knows the contract and Redis.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import cancelling, contract, jobs
from .contract import EmbeddingResult, GenerationResult
from .errors import (
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    ResultTimeoutError,
    ServerDataError,
    UnreadableResultError,
)
from .servers.answers import known_answers
from .servers.patience import Patience
from .shown import name_shown
from .streams import Delta, StreamText, partial_result, stream_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from redis import Redis

ResultT = TypeVar("ResultT", EmbeddingResult, GenerationResult)

_EndT = TypeVar("_EndT", bound=JobFailedError | JobCancelledError)
_AnswerT = TypeVar("_AnswerT")

_POLL_S = 1.0
_RENEW_S = 5.0
_END_AMONG_LAST = 16
"""The `end` is the last entry of a stream, but for what a worker that was taken for dead may still write."""


class JobHandle(Generic[ResultT]):
    """One job, by its id. Cheap to make, safe to keep, and to make again from the id in another process.

    Everything here waits, as long as `patience` lasts, for a server that is away; then raises a `ServerError`.
    """

    def __init__(
        self, job_id: str, connection: Redis, result_type: type[ResultT], patience: Patience | None = None
    ) -> None:
        self.job_id = job_id
        self._connection = connection
        self._patience = patience or Patience()
        self._result_type: type[ResultT] = result_type

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.job_id!r})"

    def _ask(
        self,
        question: Callable[[], _AnswerT],
        deadline: float | None = None,
        while_away: Callable[[], None] | None = None,
    ) -> _AnswerT:
        with named(self.job_id):
            return self._patience.ask(self._connection, question, deadline=deadline, while_away=while_away)

    def _ask_for_result(
        self,
        question: Callable[[], _AnswerT],
        deadline: float | None = None,
        while_away: Callable[[], None] | None = None,
    ) -> _AnswerT:
        try:
            return self._patience.ask(self._connection, question, deadline=deadline, while_away=while_away)
        except ServerDataError as error:
            raise UnreadableResultError(self.job_id, str(error)) from error

    def status(self) -> str:
        """RQ's word for it: queued, started, finished, failed, canceled, stopped, deferred or scheduled."""
        return self._ask(self._status)

    def _status(self) -> str:
        status = self._connection.hget(jobs.job_key(self.job_id), "status")
        if status is None:
            raise JobNotFoundError(f"there is no job {self.job_id}, or its time to live ran out")
        return as_text(status)

    def result(self, timeout_s: float | None = None) -> ResultT:
        """Waits for the result; without `timeout_s`, for as long as it takes.

        Raises `ResultTimeoutError` when the time is over (the job goes on), `JobFailedError` with the worker's
        sentence, `JobCancelledError`, `JobNotFoundError` when Redis no longer knows the job, or `UnreadableResultError`
        when what lies there is no result.
        """
        deadline = _deadline(timeout_s)
        key = jobs.results_key(self.job_id)
        seen: Any = {key: "0-0"}
        while True:
            entries = self._ask_for_result(partial(self._read, seen, deadline), deadline).get(key)
            if entries and (answer := self._answer(entries[-1], deadline)) is not None:
                return answer
            self._ask_for_result(partial(self._look, deadline, timeout_s), deadline)

    def _read(self, seen: dict[Any, Any], deadline: float | None) -> dict[str, list[dict[bytes, bytes]]]:
        """New entries of the streams in `seen`, by key, moving it on; waits for `_POLL_S` at most."""
        left_s = _POLL_S if deadline is None else deadline - time.monotonic()
        # Redis takes a block of 0 as "for ever", and the status has to be looked at now and then.
        block_ms = max(1, int(min(left_s, _POLL_S) * 1000))
        self._say_that_somebody_waits()
        streams: Any = self._connection.xread(seen, block=block_ms)
        read: dict[str, list[dict[bytes, bytes]]] = {}
        for key, entries in dict(streams or {}).items():
            seen[as_text(key)] = entries[-1][0]
            read[as_text(key)] = [fields for _, fields in entries]
        return read

    def _answer(self, entry: Mapping[bytes, bytes], deadline: float | None) -> ResultT | None:
        """The result in the last entry of the job's results, as that one counts: a job that was requeued keeps those of
        its earlier runs. None when it will be tried again; raises what it failed with.
        """
        outcome = jobs.decode_outcome(self.job_id, entry)
        if outcome.error is None:
            return jobs.read_result(self.job_id, self._result_type, outcome.return_value) if outcome.final else None
        error: JobFailedError | JobCancelledError = outcome.error
        if self._ask_for_result(self._status, deadline) == "stopped":
            error = JobCancelledError(f"job {self.job_id} was stopped while it ran")
        raise self._ask(partial(self._with_partial, error), deadline)

    def _look(self, deadline: float | None, timeout_s: float | None) -> None:
        """Raises why it is of no use to wait any longer, if so it is."""
        if (status := self._status()) in ("canceled", "stopped"):
            raise self._with_partial(JobCancelledError(f"job {self.job_id} was cancelled"))
        if status in ("finished", "failed") and not self._connection.exists(jobs.results_key(self.job_id)):
            raise JobNotFoundError(f"the result of job {self.job_id} was discarded: its time to live ran out")
        if deadline is not None and time.monotonic() >= deadline:
            raise ResultTimeoutError(f"job {self.job_id} is {name_shown(status)}: no result within {timeout_s:g} s")

    def _with_partial(self, error: _EndT) -> _EndT:
        return error

    def _say_that_somebody_waits(self) -> None:
        """Called before every wait, which takes `_POLL_S` at most."""

    def cancel(self, timeout_s: float = 10) -> bool:
        """Withdraws a job that waits, or has one that runs stopped. False when it had ended before.

        True says that it is so. Where the job still runs after `timeout_s`, raises `ResultTimeoutError`: its worker has
        been told, by a note that stays in Redis, and stops it as soon as it can.
        """
        with named(self.job_id):
            return cancelling.cancel(self._connection, self._patience, self.job_id, timeout_s)

    def delete(self) -> None:
        """Frees what an ended job keeps in Redis, without waiting for its time to live."""
        self._ask(lambda: jobs.discard(self._connection, [self.job_id]))


class EmbeddingHandle(JobHandle[EmbeddingResult]):
    """An embedding job. `result().vectors` is (texts, dimensions), in the order of the texts."""

    def __init__(self, job_id: str, connection: Redis, patience: Patience | None = None) -> None:
        super().__init__(job_id, connection, EmbeddingResult, patience)


class GenerationHandle(JobHandle[GenerationResult]):
    """A generation job. `result().text` is what the model wrote, `stream()` the same while it is written.

    `awaited`: whether to say in Redis that somebody waits, for as long as `result()` or `stream()` does: for jobs that
    asked for `cancel_if_abandoned`. A handle made again from the id does so for any job, as it does not know; to those
    that did not ask it means nothing. It is said anew, and not only prolonged: whoever comes back after the time ran
    out may still be in time, as the worker looks only now and then.
    """

    def __init__(
        self, job_id: str, connection: Redis, patience: Patience | None = None, *, awaited: bool = True
    ) -> None:
        super().__init__(job_id, connection, GenerationResult, patience)
        self._awaited = awaited
        self._renew_at = 0.0

    def stream(self, timeout_s: float | None = None, *, on_wait: Callable[[], None] | None = None) -> Iterator[str]:
        """Yields the text of the first answer in pieces as it is made; together they are exactly `result().text`.

        As `deltas`, which also has the model's thoughts, its calls of tools, and further answers.
        """
        for delta in self.deltas(timeout_s, on_wait=on_wait):
            if delta.text and not delta.choice:
                yield delta.text

    def deltas(self, timeout_s: float | None = None, *, on_wait: Callable[[], None] | None = None) -> Iterator[Delta]:
        """Yields all that the model says in pieces as it is made; together they are exactly `result()`.

        May be called late (it begins with all that is there), more than once, and for a job that was not enqueued with
        `stream=True`, which comes in one piece. `on_wait` is called about once a second while nothing comes; what
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
            try:
                read = self._ask_for_result(partial(self._read, seen, deadline), deadline, on_wait)
            except UnreadableResultError:
                # It may be what lies in the stream's place: then the result supplies all of it.
                if seen.pop(key, None) is None:
                    raise
                continue
            try:
                answer = self._answer(read[results_key][-1], deadline) if results_key in read else None
            except (JobFailedError, JobCancelledError):
                yield from text.read(read.get(key, ()))
                raise
            if answer is None:
                yield from text.read(read.get(key, ()))
                if text.ended:
                    # Should the job not be over after all, it is soon, and the result is what counts.
                    answer = self.result(_left_s(deadline))
            if answer is not None:
                yield from text.rest(answer)
                return
            if not read or time.monotonic() >= look_at:
                look_at = time.monotonic() + _POLL_S
                self._ask_for_result(partial(self._look, deadline, timeout_s), deadline, on_wait)
                if on_wait is not None:
                    on_wait()

    def _with_partial(self, error: _EndT) -> _EndT:
        with self._connection.pipeline(transaction=False) as pipeline:
            pipeline.xrevrange(stream_key(self.job_id), count=_END_AMONG_LAST)
            last: Any = known_answers(pipeline)[0] or ()
        error.partial = partial_result(fields for _, fields in last)
        return error

    def _say_that_somebody_waits(self) -> None:
        if self._awaited and time.monotonic() >= self._renew_at:
            self._renew_at = time.monotonic() + _RENEW_S
            self._connection.set(jobs.awaited_key(self.job_id), 1, ex=contract.ABANDONED_AFTER_S)


@contextmanager
def named(job_id: str) -> Iterator[None]:
    """Has a `ServerDataError` say of which job."""
    try:
        yield
    except ServerDataError as error:
        raise ServerDataError(f"job {job_id}: {error}") from error


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


def _left_s(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def as_text(value: bytes | str) -> str:
    """A word that anybody may have written."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
