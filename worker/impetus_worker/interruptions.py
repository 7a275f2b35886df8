"""Ends jobs before their time: stopped by their users, out of time, awaited by nobody, or no longer this worker's.

What the engine has made of a job until then is kept where it can be, so the engine is asked first; one that gives no
sign of life when it is asked is stuck.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from .errors import JobTimeoutError
from .leases.outcomes import Failed, Stopped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .batches.batcher import Batcher
    from .host.engine_process import EngineProcess
    from .leases.claims import ClaimedJob
    from .leases.ledger import Ledger

_TIMEOUTS_INTERVAL_S = 0.1
_UNRESPONSIVE_S = 5.0
"""An engine that is told to end a job and says nothing for so long is stuck in the device."""
_log = logging.getLogger(__name__)


class Interruptions:
    """Called from the worker's loop. Times are of `time.monotonic()`, in seconds."""

    def __init__(self, engine: EngineProcess, batcher: Batcher, ledger: Ledger) -> None:
        self._engine = engine
        self._batcher = batcher
        self._ledger = ledger
        self._timeouts_due_at = 0.0
        self._answer_by: float | None = None

    def interrupt(self, outcome: Failed | Stopped) -> None:
        """Ends the job so; what the engine has made of it is kept."""
        self._expect_answer(outcome.job.id)
        works, news = self._batcher.interrupt(outcome)
        for work_id in works:
            self._engine.cancel(work_id)
        self._ledger.note(news)

    def drop(self, job_id: str) -> None:
        """Forgets the job; how it ends is somebody else's affair."""
        self._expect_answer(job_id)
        for work_id in self._batcher.drop(job_id):
            self._engine.cancel(work_id)

    def abandon(self, job_ids: Sequence[str]) -> None:
        """Nobody waits for these any more."""
        for job_id in job_ids:
            if (job := self._ledger.open.get(job_id)) is not None:
                _log.info("job %s: nobody waits for it any more", job_id)
                self.interrupt(Stopped(job, "nobody waits for it any more, and it asked to be dropped then"))

    def enforce_timeouts(self, now: float) -> None:
        if now < self._timeouts_due_at:
            return
        self._timeouts_due_at = now + _TIMEOUTS_INTERVAL_S
        for job in list(self._ledger.open.values()):
            self._enforce_timeout(job, now)

    def _enforce_timeout(self, job: ClaimedJob, now: float) -> None:
        timeout_s = job.timeout_s
        started_at = self._batcher.started_at(job.id)
        if timeout_s is None or started_at is None or now - started_at <= timeout_s:
            return
        self.interrupt(Failed(job, JobTimeoutError(f"the job ran longer than its timeout of {timeout_s} s")))

    def _expect_answer(self, job_id: str) -> None:
        if self._answer_by is None and self._batcher.in_engine(job_id):
            self._answer_by = time.monotonic() + _UNRESPONSIVE_S

    def finds_engine_stuck(self, now: float) -> bool:
        """Whether the engine was told to end something, and has given no sign of life since."""
        if self._answer_by is None or now <= self._answer_by or self._batcher.loading:
            return False
        self._answer_by = None
        silent_s = self._engine.silent_s()
        if silent_s < _UNRESPONSIVE_S:
            return False
        _log.error("the engine has been stuck for %.0f s: restarting it", silent_s)
        return True

    def engine_was_replaced(self) -> None:
        self._answer_by = None
