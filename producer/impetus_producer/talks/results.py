"""Reading what becomes of a job: its status, its text while it is made, its result."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..contract import EmbeddingResult, GenerationResult, RerankResult, role_of_queue
from ..enqueueing import jobs
from ..errors import (
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    ResultTimeoutError,
    ServerDataError,
    UnreadableResultError,
)
from ..servers.answers import known_answers
from ..shown import name_shown
from ..streams import StreamText, partial_result, stream_key
from .steps import Listen, Look, Piece, Question, Vigil, deadline_in, past

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..streams import Delta
    from .steps import Heard, Talk

ResultT = TypeVar("ResultT", EmbeddingResult, GenerationResult, RerankResult)
_EndT = TypeVar("_EndT", bound=JobFailedError | JobCancelledError)

_END_AMONG_LAST = 16
"""The `end` is the last entry of a stream, but for what a worker that was taken for dead may still write."""


@dataclass(frozen=True, slots=True)
class Awaited(Generic[ResultT]):
    """A job, what its result is to be, and whether to say that somebody waits for it."""

    job_id: str
    result_type: type[ResultT]
    vigil: Vigil | None = None


def role_of(job_id: str) -> Talk[str]:
    """`embedding`, `generation` or `rerank`, by the queue that the job was put on."""
    # Redis knows bytes: what is no text, as a command line may hold, is nobody's id.
    is_text = not any("\ud800" <= each <= "\udfff" for each in job_id)
    with named(job_id):
        origin = (yield Question(lambda client: client.hget(jobs.job_key(job_id), "origin"))) if is_text else None
    if origin is None:
        raise _not_found(job_id)
    return role_of_queue(as_text(origin))


def status(job_id: str) -> Talk[str]:
    """RQ's word; raises `JobNotFoundError`."""
    with named(job_id):
        word: str = yield _status(job_id)
    return word


def result(awaited: Awaited[ResultT], timeout_s: float | None = None) -> Talk[ResultT]:
    """Waits for the result."""
    return (yield from _result(awaited, timeout_s, deadline_in(timeout_s)))


def _result(awaited: Awaited[ResultT], timeout_s: float | None, deadline: float | None) -> Talk[ResultT]:
    key = jobs.results_key(awaited.job_id)
    listen = Listen(awaited.job_id, {key: "0-0"}, deadline, awaited.vigil)
    while True:
        with unreadable(awaited.job_id):
            heard: Heard = yield listen
        if key in heard.entries:
            answer = yield from _answer(awaited, heard.entries[key][-1], deadline)
            if answer is not None:
                return answer
        yield from _go_on(awaited, heard, timeout_s, deadline)


def deltas(awaited: Awaited[GenerationResult], timeout_s: float | None = None) -> Talk[None]:
    """Has a `Delta` for each piece that the model says."""
    deadline = deadline_in(timeout_s)
    key, results_key = stream_key(awaited.job_id), jobs.results_key(awaited.job_id)
    listen = Listen(awaited.job_id, {key: "0-0", results_key: "0-0"}, deadline, awaited.vigil)
    text = StreamText(awaited.job_id)
    while True:
        try:
            with unreadable(awaited.job_id):
                heard: Heard = yield listen
        except UnreadableResultError:
            # It may be what lies in the stream's place: then the result supplies all of it.
            if listen.seen.pop(key, None) is None:
                raise
            continue
        said, answer = heard.entries.get(key, ()), None
        try:
            if results_key in heard.entries:
                answer = yield from _answer(awaited, heard.entries[results_key][-1], deadline)
        except (JobFailedError, JobCancelledError):
            yield from _pieces(text.read(said))
            raise
        if answer is None:
            yield from _pieces(text.read(said))
            if text.ended:
                # Should the job not be over after all, it is soon, and the result is what counts.
                answer = yield from _result(awaited, timeout_s, deadline)
        if answer is not None:
            yield from _pieces(text.rest(answer))
            return
        yield from _go_on(awaited, heard, timeout_s, deadline)


def _pieces(made: Sequence[Delta]) -> Talk[None]:
    for delta in made:
        yield Piece(delta)


def _answer(awaited: Awaited[ResultT], entry: Mapping[bytes, bytes], deadline: float | None) -> Talk[ResultT | None]:
    """The result in the last entry of the job's results, as that one counts: a job that was requeued keeps those of its
    earlier runs. None when it will be tried again; raises what it failed with.
    """
    job_id = awaited.job_id
    outcome = jobs.decode_outcome(job_id, entry)
    if outcome.error is None:
        return jobs.read_result(job_id, awaited.result_type, outcome.return_value) if outcome.final else None
    with unreadable(job_id):
        stopped = (yield _status(job_id, deadline)) == "stopped"
    if stopped:
        raise (yield from _with_partial(awaited, JobCancelledError(f"job {job_id} was stopped while it ran"), deadline))
    raise (yield from _with_partial(awaited, outcome.error, deadline))


def _go_on(awaited: Awaited[Any], heard: Heard, timeout_s: float | None, deadline: float | None) -> Talk[None]:
    """Raises why it is of no use to wait any longer, if so it is."""
    job_id, look = awaited.job_id, heard.look
    if look is None:
        if not past(deadline):
            return
        with unreadable(job_id):
            look = yield look_at(job_id, deadline)
    if look.status is None:
        raise _not_found(job_id)
    if look.status in ("canceled", "stopped"):
        raise (yield from _with_partial(awaited, JobCancelledError(f"job {job_id} was cancelled"), deadline))
    if look.over:
        raise JobNotFoundError(f"the result of job {job_id} was discarded: its time to live ran out")
    if past(deadline):
        raise ResultTimeoutError(f"job {job_id} is {name_shown(look.status)}: no result within {timeout_s:g} s")


def _with_partial(awaited: Awaited[Any], error: _EndT, deadline: float | None) -> Talk[_EndT]:
    """The error, with what a generation had made."""
    if awaited.result_type is not GenerationResult:
        return error

    def ask(client: Any) -> Any:
        pipeline = client.pipeline(transaction=False)
        pipeline.xrevrange(stream_key(awaited.job_id), count=_END_AMONG_LAST)
        return pipeline.execute(raise_on_error=False)

    with named(awaited.job_id):
        last = yield Question(ask, lambda answers: known_answers(answers)[0] or (), deadline)
    error.partial = partial_result(fields for _, fields in last)
    return error


def _status(job_id: str, deadline: float | None = None) -> Question[str]:
    def read(answer: Any) -> str:
        if answer is None:
            raise _not_found(job_id)
        return as_text(answer)

    return Question(lambda client: client.hget(jobs.job_key(job_id), "status"), read, deadline)


def look_at(job_id: str, deadline: float | None = None) -> Question[Look]:
    """Whether there still is something to wait for."""

    def ask(client: Any) -> Any:
        pipeline = client.pipeline(transaction=False)
        ask_for_look(pipeline, job_id)
        return pipeline.execute()

    return Question(ask, lambda answers: read_look(*answers), deadline)


def ask_for_look(pipeline: Any, job_id: str) -> None:
    """Two commands, whose answers `read_look` reads."""
    pipeline.hget(jobs.job_key(job_id), "status")
    pipeline.exists(jobs.results_key(job_id))


def read_look(status: Any, has_result: Any) -> Look:
    return Look(None if status is None else as_text(status), bool(has_result))


def _not_found(job_id: str) -> JobNotFoundError:
    return JobNotFoundError(f"there is no job {job_id}, or its time to live ran out")


@contextmanager
def named(job_id: str) -> Iterator[None]:
    """Has a `ServerDataError` say of which job."""
    try:
        yield
    except ServerDataError as error:
        raise ServerDataError(f"job {job_id}: {error}") from error


@contextmanager
def unreadable(job_id: str) -> Iterator[None]:
    """What is no result lies in a result's place."""
    try:
        yield
    except ServerDataError as error:
        raise UnreadableResultError(job_id, str(error)) from error


def as_text(value: bytes | str) -> str:
    """A word that anybody may have written."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
