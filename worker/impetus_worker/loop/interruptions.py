"""Ends jobs before their time: stopped by their users, out of time, awaited by nobody, or no longer this worker's.

What the engine has made of a job until then is kept where it can be, so the engine is asked first. One that gives no
sign of life for longer than what it was given should cost is hung.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..errors import JobTimeoutError
from ..leases.outcomes import Failed, Stopped

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ..batches.batcher import Batcher
    from ..host.engine_process import EngineProcess
    from ..leases.ledgers import Ledgers

_TIMEOUTS_INTERVAL_S = 0.1
_log = logging.getLogger(__name__)


class Interruptions:
    """Called from the worker's loop."""

    def __init__(self, engine: EngineProcess, batcher: Batcher, jobs: Ledgers) -> None:
        self._engine = engine
        self._batcher = batcher
        self._jobs = jobs
        self._timeouts_due_at = 0.0

    def interrupt(self, outcome: Failed | Stopped) -> None:
        """Ends the job so; what the engine has made of it is kept."""
        works, news = self._batcher.interrupt(outcome)
        for work_id in works:
            self._engine.cancel(work_id)
        self._jobs.note(news)

    def forget(self, job_ids: Collection[str]) -> None:
        """Forgets the jobs; how they end is somebody else's affair."""
        for work_id in self._batcher.forget(job_ids):
            self._engine.cancel(work_id)

    def abandon(self, job_ids: Sequence[str]) -> None:
        """Nobody waits for these any more."""
        for job_id in job_ids:
            if (job := self._jobs.open.get(job_id)) is not None:
                _log.info("job %s: nobody waits for it any more", job_id)
                self.interrupt(Stopped(job, "nobody waits for it any more, and it asked to be dropped then"))

    def enforce_timeouts(self, now: float) -> None:
        """Ends the jobs that have had more of the engine's time than they may."""
        if now < self._timeouts_due_at:
            return
        self._timeouts_due_at = now + _TIMEOUTS_INTERVAL_S
        for job in self._batcher.overdue(now):
            self.interrupt(Failed(job, JobTimeoutError(f"the job ran longer than its timeout of {job.timeout_s} s")))

    def engine_is_hung(self, now: float) -> bool:
        """Whether the engine has been silent for longer than what it holds can explain."""
        silent_s = self._engine.silent_s()
        if not self._batcher.has_work or silent_s <= self._batcher.patience_s(now):
            return False
        _log.error("the engine has been silent for %.0f s, longer than its work should take", silent_s)
        return True
