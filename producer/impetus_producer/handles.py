"""Handles: a job by its id, and what becomes of it: its status, its text while it is made, its result, its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic

from .contract import EmbeddingResult, GenerationResult, RerankResult
from .enqueueing import jobs
from .line import Line
from .servers.patience import Patience
from .talks import cancelling, results
from .talks.results import Awaited, ResultT
from .talks.steps import Vigil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from .streams import Delta


class JobHandle(Generic[ResultT]):
    """One job, by its id. Cheap to make, safe to keep, and to make again from the id in another process.

    Everything here waits, as long as `patience` lasts, for a server that is away; then raises a `ServerError`.
    """

    def __init__(
        self,
        job_id: str,
        connection: Redis,
        result_type: type[ResultT],
        patience: Patience | None = None,
        vigil: Vigil | None = None,
    ) -> None:
        self.job_id = job_id
        self._connection = connection
        self._patience = patience or Patience()
        self._awaited: Awaited[ResultT] = Awaited(job_id, result_type, vigil)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.job_id!r})"

    def _line(self, while_away: Callable[[], None] | None = None) -> Line:
        return Line(self._connection, self._patience, while_away)

    def status(self) -> str:
        """RQ's word for it: queued, started, finished, failed, canceled, stopped, deferred or scheduled."""
        return self._line().hold(results.status(self.job_id))

    def result(self, timeout_s: float | None = None) -> ResultT:
        """Waits for the result; without `timeout_s`, for as long as it takes.

        Raises `ResultTimeoutError` when the time is over (the job goes on), `JobFailedError` with the worker's
        sentence, `JobCancelledError`, `JobNotFoundError` when Redis no longer knows the job, or `UnreadableResultError`
        when what lies there is no result.
        """
        answer: ResultT = self._line().hold(results.result(self._awaited, timeout_s))
        return answer

    def cancel(self, timeout_s: float = 10) -> bool:
        """Withdraws a job that waits, or has one that runs stopped. False when it had ended before.

        True says that it is so. Where the job still runs after `timeout_s`, raises `ResultTimeoutError`: its worker has
        been told, by a note that stays in Redis, and stops it as soon as it can.
        """
        return self._line().hold(cancelling.cancel(self.job_id, timeout_s))

    def delete(self) -> None:
        """Frees what an ended job keeps in Redis, without waiting for its time to live."""
        self._line().hold(jobs.discarding([self.job_id]))


class EmbeddingHandle(JobHandle[EmbeddingResult]):
    """An embedding job. `result().vectors` is (texts, dimensions), in the order of the texts."""

    def __init__(self, job_id: str, connection: Redis, patience: Patience | None = None) -> None:
        super().__init__(job_id, connection, EmbeddingResult, patience)


class RerankHandle(JobHandle[RerankResult]):
    """A rerank job. `result().results` are the documents by their relevance."""

    def __init__(self, job_id: str, connection: Redis, patience: Patience | None = None) -> None:
        super().__init__(job_id, connection, RerankResult, patience)


class GenerationHandle(JobHandle[GenerationResult]):
    """A generation job. `result().text` is what the model wrote, `stream()` the same while it is written.

    `awaited`: whether to say in Redis that somebody waits, for as long as `result()` or `stream()` does: for jobs that
    asked for `cancel_if_abandoned`. A handle made again from the id does so for any job, as it does not know; to those
    that did not ask it means nothing.
    """

    def __init__(
        self, job_id: str, connection: Redis, patience: Patience | None = None, *, awaited: bool = True
    ) -> None:
        vigil = Vigil(jobs.awaited_key(job_id)) if awaited else None
        super().__init__(job_id, connection, GenerationResult, patience, vigil)

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
        yield from self._line(on_wait).pieces(results.deltas(self._awaited, timeout_s))
