"""Ends runs as RQ itself would: callbacks, retries, webhooks, rate limits, repeats. In a thread of its own.

Callbacks may take minutes and each ending takes several round trips, so nobody waits for it; the job's lease is kept
meanwhile. In the order in which it is told, so in order for each job. RQ fences nothing itself: here its transaction is
run only where the run is this worker's, and nobody has touched the job since it was.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, WatchError
from rq.callbacks import execute_stopped_callback
from rq.executions import Execution
from rq.job import JobStatus
from rq.rate_limit import release_slot
from rq.serializers import JSONSerializer
from rq.utils import now
from rq.worker.base import BaseWorker

from impetus_producer.servers.answers import code

from ..allowed import NOTHING, Allowed
from ..companions.companion import Companion
from ..companions.link import FIRST_WAIT_S, MAX_WAIT_S, PASSING, Link, is_about_data
from ..errors import InvalidRequestError, LeaseLostError, PoisonedJobError
from ..inbox import EndedByRq
from .callbacks import NoPenalty
from .claims import DEATHS_ALONE, Verb
from .endings import failing, without_rq
from .outcomes import Failed, Finished, Stopped
from .rq_job import GuardedJob, StoredJob
from .webhooks import WebhookSender

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from rq import Queue
    from rq.job import Job
    from rq.registry import StartedJobRegistry

    from .claims import ClaimedJob, Claims
    from .outcomes import Outcome

_NOT_OURS = "job %s: it is another's by now, so its result is not written"
_MAX_FAILURES = 10
"""An ending that failed so often, though the server held the run for it each time, and named no state of its own that
keeps it, fails by what is in the job, and not for want of a server: it holds up the others no longer.
"""
_MOST_ASKED = 100
"""Times that an ending is tried against somebody who writes the job meanwhile, each time."""
_ENDED = (b"finished", b"failed", b"stopped")
_log = logging.getLogger(__name__)


class RqEndings(Companion):
    """Tells an `EndedByRq` for each outcome it is given. `waiting`: how many it has not ended yet."""

    def __init__(
        self,
        link: Link,
        claims: Claims,
        worker: str,
        allowed: Allowed,
        tell: Callable[[object], None],
        calling: Callable[[str], AbstractContextManager[None]] = lambda job_id: nullcontext(),
    ) -> None:
        """`calling`: goes around a job's callbacks, by its id."""
        super().__init__("rq-endings", tell)
        self._link = link
        self._claims = claims
        self._worker = worker
        self._allowed = allowed
        self._calling = calling
        self._webhooks = WebhookSender(allowed)
        self._rq: _FencedWorker | None = None
        self._outcomes: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.waiting = 0
        self._was_held = False
        """Whether the server said, for the ending that is being tried, that the run is this worker's."""

    def put(self, outcome: Outcome) -> None:
        with self._lock:
            self.waiting += 1
        self._outcomes.put(outcome)

    def stop(self) -> None:
        super().stop()
        self._outcomes.put(None)

    def send_webhooks(self, patience_s: float) -> None:
        """Gives those that still wait so long to be sent."""
        self._webhooks.close(patience_s)

    def run(self) -> None:
        while (outcome := self._outcomes.get()) is not None and not self.stopped.is_set():
            failures: list[Exception] = []
            while not self.stopped.is_set():
                self._was_held = False
                try:
                    self._end(outcome, failures)
                    break
                except PASSING as error:
                    # How far it came is not known: it is ended again, and the fence says whether it must be.
                    self.stopped.wait(self._wait_s(error, len(failures)))
                    is_a_state = code(error) and not is_about_data(error)
                    if (self._was_held and not is_a_state) or not failures:
                        failures.append(error)
            with self._lock:
                self.waiting -= 1
            self.tell(EndedByRq(outcome.job))

    def _wait_s(self, error: Exception, failures: int) -> float:
        """Longer each time, though asking whose the run is reaches the server meanwhile."""
        if is_about_data(error):
            return FIRST_WAIT_S
        return max(self._link.failed(error), min(MAX_WAIT_S, FIRST_WAIT_S * 2.0**failures))

    def _end(self, outcome: Outcome, failures: Sequence[Exception]) -> None:
        """`failures`: of the times that it was tried before."""
        claimed = outcome.job
        if not self._link.run(self._claims.holds(claimed)):
            if not failures:
                _log.warning(_NOT_OURS, claimed.id)
            self._leave(claimed)
            return
        self._was_held = True
        if failures and (is_about_data(failures[-1]) or len(failures) >= _MAX_FAILURES):
            _log.error("job %s: RQ cannot end it: %s", claimed.id, failures[-1])
            # What lies beside a job, such as its dependents, anybody may have put there: the job itself is done.
            data = is_about_data(failures[-1])
            ending = without_rq(outcome, failures[-1]) if data else failing(claimed, failures[-1], Verb.ABORT)
            self._link.run(self._claims.finish([ending]))
            return
        try:
            # One that ended more workers than make it poison did so by the callback that hears of that.
            allowed = Allowed((), self._allowed.webhooks) if claimed.deaths_alone > DEATHS_ALONE else self._allowed
            job = GuardedJob(claimed, self._link.connection, self._worker, allowed, self._webhooks)
        except PASSING:
            raise
        except Exception as unreadable:  # noqa: BLE001 - whatever bytes lie in the hash, they fail this job alone
            reason = outcome.error if isinstance(outcome, Failed) else unreadable
            self._link.run(self._claims.finish([failing(claimed, reason, Verb.ABORT)]))
            return
        try:
            with self._calling(claimed.id) if job.may_call else nullcontext():
                self._end_by_rq(outcome, job)
        except PASSING:
            raise
        except LeaseLostError:
            pass
        except Exception as failure:  # noqa: BLE001 - RQ gave up half-way, and the job must end all the same
            _log.error(
                *("job %s: RQ could not end it: %s: %s", claimed.id, type(failure).__name__, failure),
                exc_info=_log.isEnabledFor(logging.DEBUG),  # what lies in the hash is not worth a page
            )
            self._link.run(self._claims.finish([failing(claimed, failure, Verb.ABORT)]))
        fence = self._rq_worker().fence
        kept_from_it = fence.raised  # RQ logs what keeps it from writing a failure, and goes on
        if isinstance(kept_from_it, LeaseLostError):
            if not fence.sent:
                _log.warning(_NOT_OURS, claimed.id)
            self._leave(claimed)
        elif not self._link.run(self._claims.forget(claimed)):
            raise kept_from_it or RedisConnectionError(f"RQ's ending of job {claimed.id} was not written")

    def _end_by_rq(self, outcome: Outcome, job: GuardedJob) -> None:
        claimed, rq = outcome.job, self._rq_worker()
        rq.fence.begin(job.key, lambda: self._link.run(self._claims.holds(claimed)))
        queue = self._queue(claimed)
        execution = Execution(claimed.token, claimed.id, self._link.connection, worker_name=self._worker)
        match outcome:
            case Finished():
                try:
                    rq._finalize_success(job, queue, execution, outcome.whole())
                except (*PASSING, LeaseLostError):
                    raise
                except Exception:  # noqa: BLE001 - as RQ has it: a success callback that raises fails its job
                    rq._finalize_failure(job, queue, execution, sys.exc_info())
            case Failed(error=error):
                if isinstance(error, InvalidRequestError | PoisonedJobError):
                    job.retries_left = None  # it would fail again
                rq._finalize_failure(job, queue, execution, (type(error), error, error.__traceback__))
            case Stopped(reason=said):
                job.ended_at = now()
                rq._stopped_job_id = job.id
                try:
                    execute_stopped_callback(job, rq.death_penalty_class)
                except Exception:  # noqa: BLE001 - as RQ has it: the job is stopped all the same
                    _log.error("job %s: its stopped callback raised", claimed.id, exc_info=True)
                rq.handle_job_failure(job, queue, exc_string=said, execution=execution)

    def _rq_worker(self) -> _FencedWorker:
        if self._rq is None:
            self._rq = _FencedWorker(
                ["embedding"],
                name=self._worker,
                connection=_Fenced(connection_pool=self._link.connection.connection_pool),
                serializer=JSONSerializer,
                job_class=StoredJob,
            )
        return self._rq

    def _leave(self, claimed: ClaimedJob) -> None:
        """Takes a run that is not this worker's to end out of its books.

        This worker may have ended it by a transaction whose answer was lost, and RQ not have come to what follows one:
        that is done here, perhaps once more. One that was cancelled or deleted may hold a slot.
        """
        self._link.run(self._claims.forget(claimed))
        try:
            said: Any = self._link.connection.hget(f"rq:job:{claimed.id}", "status")
            if said not in (b"queued", b"started"):
                ended, queue = said in _ENDED, self._queue(claimed)
                job = GuardedJob(claimed, self._link.connection, self._worker, NOTHING, self._webhooks)
                job._status = JobStatus(said.decode()) if ended else JobStatus.CANCELED
                release_slot(job)
                if ended:
                    queue.enqueue_dependents(job)
                    queue.ready_job_registry.cleanup()
        except Exception as error:
            if isinstance(error, PASSING) and not is_about_data(error):
                raise
            _log.warning("job %s: what waits for its end waits for RQ's chores: %s", claimed.id, error)

    def _queue(self, claimed: ClaimedJob) -> Queue:
        return _FencedWorker.queue_class(
            claimed.queue, connection=self._link.connection, serializer=JSONSerializer, job_class=StoredJob
        )


class _Fence:
    """Of the run that is being ended: its job's key, and how to ask whether it is this worker's."""

    key: str
    holds: Callable[[], bool]
    raised: Exception | None = None
    """What `assert_held` raised."""
    sent = False
    """Whether a transaction went out that the server may have run."""
    _asked = 0

    def begin(self, key: str, holds: Callable[[], bool]) -> None:
        self.key, self.holds, self.raised, self.sent, self._asked = key, holds, None, False, 0

    def assert_held(self) -> None:
        """Raises `LeaseLostError` where it is another's, `DataError` where it was asked too often."""
        self._asked += 1
        if self._asked > _MOST_ASKED:
            self.raised = DataError(f"{self.key} is written again and again")
        elif not self.holds():
            self.raised = LeaseLostError(f"{self.key}: it is another's by now")
        if self.raised is not None:
            raise self.raised


class _FencedPipeline(Pipeline):
    """Whoever puts a job back, claims or cancels it writes its hash, so that a transaction which watched it before it
    asked whose the run is does nothing then. Where somebody else wrote it, RQ tries again what it watches itself; what
    it does not watch is tried again here.
    """

    fence: _Fence

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        at_once: Callable[..., object] = self.immediate_execute_command
        commands, is_watched_by_rq = self.command_stack, self.watching
        while True:
            self.command_stack = commands
            at_once("WATCH", self.fence.key)
            self.watching = True
            self.fence.assert_held()
            try:
                self.fence.sent = True
                return super().execute(raise_on_error)
            except WatchError as error:
                # redis-py says so, too, where the connection was lost that watched.
                self.fence.sent = isinstance(error.__context__, PASSING)
                if is_watched_by_rq:
                    raise


class _Fenced(Redis):
    """The client of the worker whose endings are used: it makes transactions, and those are fenced."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.fence = _Fence()

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        pipeline = _FencedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipeline.fence = self.fence
        return pipeline


class _FencedWorker(BaseWorker):
    """RQ's worker, of which only the endings are used. Both raise `LeaseLostError` where the run is another's."""

    log_result_lifespan = False
    death_penalty_class = NoPenalty  # callbacks have their own

    @property
    def fence(self) -> _Fence:
        return cast("_Fenced", self.connection).fence

    def handle_job_success(
        self, job: Job, queue: Queue, started_job_registry: StartedJobRegistry, execution: Execution
    ) -> None:
        self.fence.assert_held()
        super().handle_job_success(job, queue, started_job_registry, execution)

    def handle_job_failure(
        self,
        job: Job,
        queue: Queue,
        started_job_registry: StartedJobRegistry | None = None,
        exc_string: str = "",
        execution: Execution | None = None,
    ) -> None:
        self.fence.assert_held()
        super().handle_job_failure(job, queue, started_job_registry, exc_string, execution)

    def increment_total_working_time(self, job_execution_time: object, pipeline: object) -> None:
        """Counted by the ledger: many jobs share the time in which they ran."""
