"""How runs end in Redis.

    claimed -> read -> in the engine -> finished | failed | stopped | back on the queue

Most end in `finish.lua`, many in one transaction, their dependents enqueued with them. A job that asked RQ for more
(callbacks, retries, webhooks, a rate limit, repeats) ends as RQ itself would end it, in `rq_endings`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rq.defaults import DEFAULT_FAILURE_TTL, DEFAULT_RESULT_TTL

from .claims import Ending, Verb, whole_number
from .outcomes import Failed, Finished, Returned, Stopped

if TYPE_CHECKING:
    from .claims import ClaimedJob
    from .outcomes import Outcome

_ASKS_MORE_ALWAYS = (b"repeats_left", b"rate_limit_key", b"webhooks")
_ASKS_MORE_ON_SUCCESS = (*_ASKS_MORE_ALWAYS, b"success_callback_name")
_ASKS_MORE_ON_FAILURE = (*_ASKS_MORE_ALWAYS, b"failure_callback_name", b"retries_left")
_ASKS_MORE_WHEN_STOPPED = (b"rate_limit_key", b"stopped_callback_name")
_MAX_REASON_CHARACTERS = 4000
_MAX_TTL_S = 10**9
"""Redis refuses times to live that overflow."""


def ending_of(outcome: Outcome) -> Ending | None:
    """How the run ends on the short path, or None where RQ has more to do."""
    job = outcome.job
    match outcome:
        case Returned():
            return Ending(job, Verb.RETURN)
        case Finished(result=result, vectors=vectors):
            ttl_s = _ttl_s(job.fields.get(b"result_ttl"), DEFAULT_RESULT_TTL)
            if _asks(job, _ASKS_MORE_ON_SUCCESS) or (ttl_s == 0 and job.fields.get(b"group_id")):
                return None
            return Ending(job, Verb.FINISH, result, ttl_s, vectors)
        case Failed(error=error):
            return None if _asks(job, _ASKS_MORE_ON_FAILURE) else failing(job, error)
        case Stopped(reason=reason):
            if _asks(job, _ASKS_MORE_WHEN_STOPPED):
                return None
            return Ending(job, Verb.STOP, reason[:_MAX_REASON_CHARACTERS].encode(), _failure_ttl_s(job))


def without_rq(outcome: Outcome, error: Exception) -> Ending:
    """How a run ends that RQ cannot end: what was done is kept, whatever the job asked for besides."""
    if isinstance(outcome, Finished):
        job = outcome.job
        ttl_s = _ttl_s(job.fields.get(b"result_ttl"), DEFAULT_RESULT_TTL)
        return Ending(job, Verb.COMPLETE, outcome.result, ttl_s or DEFAULT_RESULT_TTL, outcome.vectors)
    return failing(outcome.job, outcome.error if isinstance(outcome, Failed) else error, Verb.ABORT)


def failing(job: ClaimedJob, error: Exception, verb: Verb = Verb.FAIL) -> Ending:
    """Ends the run with the reason that RQ shows: the error's name and its sentence."""
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    return Ending(job, verb, f"{name}: {sentence(error)}".encode(errors="replace"), _failure_ttl_s(job))


def sentence(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:_MAX_REASON_CHARACTERS]


def _asks(job: ClaimedJob, names: tuple[bytes, ...]) -> bool:
    return not job.fields.keys().isdisjoint(names) and any(map(job.fields.get, names))


def _failure_ttl_s(job: ClaimedJob) -> int:
    return _ttl_s(job.fields.get(b"failure_ttl"), DEFAULT_FAILURE_TTL)


def _ttl_s(value: bytes | None, default: int) -> int:
    """-1 for ever, as RQ writes it."""
    if value == b"-1":
        return -1
    ttl_s = whole_number(value, _MAX_TTL_S)
    return default if ttl_s is None else ttl_s
