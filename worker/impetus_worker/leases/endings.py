"""A job's whole life, from its claim to one ending.

    claimed -> read -> in the engine -> finished | failed | stopped | back on the queue

Most jobs end in `finish.lua`, many in one transaction. A job that asked RQ for more (callbacks, retries, dependents,
webhooks, a rate limit, repeats, a result that is not kept) ends as RQ itself would end it. Either way only while its
lease holds: a worker that was thought dead writes nothing.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import RedisError
from rq.callbacks import execute_stopped_callback
from rq.defaults import DEFAULT_FAILURE_TTL
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.job import Job
from rq.rate_limit import release_slot
from rq.serializers import JSONSerializer
from rq.utils import now

from ..errors import InvalidRequestError, LeaseLostError, PoisonedJobError
from .claims import ClaimedJob, Claims, Ended, Ending, Verb
from .outcomes import Failed, Finished, Outcome, Returned, Stopped
from .rq_job import GuardedJob
from .webhooks import WebhookSender

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from redis import Redis
    from rq.worker.base import BaseWorker

_ASKS_MORE_ALWAYS = (b"repeats_left", b"rate_limit_key", b"webhooks")
_ASKS_MORE_ON_SUCCESS = (*_ASKS_MORE_ALWAYS, b"success_callback_name")
_ASKS_MORE_ON_FAILURE = (*_ASKS_MORE_ALWAYS, b"failure_callback_name", b"retries_left")
_MAX_REASON_CHARACTERS = 4000
_MAX_TTL_S = 10**9
"""Redis refuses times to live that overflow, in the middle of a script."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """Jobs that are about to end, and how: those without an ending here end by RQ's own means."""

    outcomes: tuple[Outcome, ...]
    by_run: dict[str, Ending]
    """By the id of the execution."""

    @property
    def endings(self) -> list[Ending]:
        return list(self.by_run.values())


class Lifecycle:
    """Ends the jobs that `worker` claimed. Call it from one thread."""

    def __init__(
        self, worker: BaseWorker, claims: Claims, default_result_ttl_s: int, allowed_callbacks: Collection[str]
    ) -> None:
        self._worker = worker
        self._connection: Redis = worker.connection
        self._claims = claims
        self._default_result_ttl_s = default_result_ttl_s
        self._allowed_callbacks = allowed_callbacks
        self._webhooks = WebhookSender()
        self._log = logging.getLogger(__name__)

    def settle(self, outcomes: Sequence[Outcome]) -> bool:
        """Ends each job; says whether any went RQ's own way.

        A job whose lease was lost is another worker's by now, and is left alone.
        """
        settlement = self.prepare(outcomes)
        return self.conclude(settlement, self._claims.finish(settlement.endings) if settlement.endings else [])

    def prepare(self, outcomes: Sequence[Outcome]) -> Settlement:
        """What `settle` would write; whoever sends it then says with `conclude` what came of it."""
        endings: dict[str, Ending] = {}
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                self._log.warning("job %s failed: %s", outcome.job.id, _sentence(outcome.error))
            if ending := self._ending(outcome):
                endings[outcome.job.execution_id] = ending
        return Settlement(tuple(outcomes), endings)

    def conclude(self, settlement: Settlement, ended: Sequence[Ended]) -> bool:
        """Ends by RQ's own means what the script did not; says whether there was any."""
        codes = dict(zip(settlement.by_run, ended, strict=True))
        by_rq = False
        for outcome in settlement.outcomes:
            code = codes.get(outcome.job.execution_id, Ended.HAS_DEPENDENTS)
            if code is Ended.LEASE_LOST:
                self._log.warning("job %s: its lease was lost, so its result is not written", outcome.job.id)
            elif code is Ended.HAS_DEPENDENTS:
                self._settle_by_rq(outcome)
                by_rq = True
        return by_rq

    def close(self, patience_s: float) -> None:
        """Gives the webhooks that still wait so long to be sent."""
        self._webhooks.close(patience_s)

    def _ending(self, outcome: Outcome) -> Ending | None:
        """How the job ends on the short path, or None where RQ has more to do."""
        job = outcome.job
        match outcome:
            case Returned():
                return Ending(job, Verb.RETURN)
            case Finished(result=result, vectors=vectors):
                ttl_s = _seconds(job.fields.get(b"result_ttl"), self._default_result_ttl_s)
                if ttl_s == 0 or any(job.fields.get(name) for name in _ASKS_MORE_ON_SUCCESS):
                    return None
                return Ending(job, Verb.FINISH, result, ttl_s, vectors)
            case Failed(error=error):
                if any(job.fields.get(name) for name in _ASKS_MORE_ON_FAILURE):
                    return None
                return self._failing(job, error, Verb.FAIL)
            case Stopped():
                return None

    def _failing(self, job: ClaimedJob, error: Exception, verb: Verb) -> Ending:
        ttl_s = _seconds(job.fields.get(b"failure_ttl"), DEFAULT_FAILURE_TTL)
        name = f"{type(error).__module__}.{type(error).__qualname__}"
        return Ending(job, verb, f"{name}: {_sentence(error)}".encode(), ttl_s)

    def _settle_by_rq(self, outcome: Outcome) -> None:
        claimed = outcome.job
        # RQ takes several round trips, so the fence is a lease that outlasts them all.
        if not self._claims.seal(claimed):
            self._leave(claimed)
            return
        job = GuardedJob(claimed.id, self._connection, self._allowed_callbacks, self._webhooks)
        try:
            job.refresh()  # type: ignore[no-untyped-call]
        except RedisError:
            raise
        except Exception as unreadable:  # noqa: BLE001 - whatever bytes lie in the hash, they fail this job alone
            reason = outcome.error if isinstance(outcome, Failed) else unreadable
            self._claims.finish([self._failing(claimed, reason, Verb.ABORT)])
            return
        execution = Execution(claimed.execution_id, claimed.id, self._connection, worker_name=self._worker.name)
        queue = self._worker.queue_class(claimed.queue, connection=self._connection, serializer=JSONSerializer)
        try:
            match outcome:
                case Finished():
                    try:
                        self._worker._finalize_success(job, queue, execution, outcome.whole())
                    except (RedisError, LeaseLostError):
                        raise
                    except Exception:  # noqa: BLE001 - as RQ has it: a success callback that raises fails its job
                        self._worker._finalize_failure(job, queue, execution, sys.exc_info())
                case Failed(error=error):
                    if isinstance(error, InvalidRequestError | PoisonedJobError):
                        job.retries_left = None  # it would fail again
                    self._worker._finalize_failure(job, queue, execution, (type(error), error, error.__traceback__))
                case Stopped(reason=said):
                    job.ended_at = now()
                    self._worker._stopped_job_id = job.id
                    try:
                        execute_stopped_callback(job, self._worker.death_penalty_class)
                    except Exception:  # noqa: BLE001 - as RQ has it: the job is stopped all the same
                        self._log.error("job %s: its stopped callback raised", claimed.id, exc_info=True)
                    self._worker.handle_job_failure(job, queue, exc_string=said, execution=execution)
        except RedisError:
            raise
        except LeaseLostError:
            self._log.warning("job %s: its lease was lost, so its result is not written", claimed.id)
        except Exception as failure:  # noqa: BLE001 - RQ gave up half-way, and the job must end all the same
            self._log.error("job %s: RQ could not end it", claimed.id, exc_info=True)
            self._claims.finish([self._failing(claimed, failure, Verb.ABORT)])

    def _leave(self, claimed: ClaimedJob) -> None:
        """Takes a job that is no longer this worker's out of its books, and gives back the slot it may have held."""
        self._log.warning("job %s: its lease was lost, so its result is not written", claimed.id)
        self._claims.finish([Ending(claimed, Verb.RETURN)])
        if claimed.fields.get(b"rate_limit_key"):
            try:
                release_slot(Job.fetch(claimed.id, connection=self._connection, serializer=JSONSerializer))
            except NoSuchJobError:
                self._log.debug("job %s was deleted while it ran; RQ's maintenance frees its slot", claimed.id)


def _sentence(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:_MAX_REASON_CHARACTERS]


def _seconds(value: bytes | None, default: int) -> int:
    try:
        return min(int(value), _MAX_TTL_S) if value else default
    except ValueError:
        return default
