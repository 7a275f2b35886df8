"""RQ's worker, which ends a job by RQ's own means only while the lease on it holds.

RQ itself fences nothing: a worker that was taken for dead, and wakes, would end a job a second time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rq.worker.base import BaseWorker

from ..errors import LeaseLostError

if TYPE_CHECKING:
    from rq import Queue
    from rq.executions import Execution
    from rq.job import Job
    from rq.registry import StartedJobRegistry


class FencedWorker(BaseWorker):
    """Both endings raise `LeaseLostError` where `holds` says no, and nothing is written then.

    RQ calls them after a job's callback, which may have outlasted any lease, and before its own transaction.
    """

    def holds(self, execution: Execution) -> bool:
        """Whether this run of a job is still this worker's, and will be for as long as RQ's ending of it takes."""
        raise NotImplementedError

    def handle_job_success(
        self, job: Job, queue: Queue, started_job_registry: StartedJobRegistry, execution: Execution
    ) -> None:
        self._assert_held(execution)
        super().handle_job_success(job, queue, started_job_registry, execution)

    def handle_job_failure(
        self,
        job: Job,
        queue: Queue,
        started_job_registry: StartedJobRegistry | None = None,
        exc_string: str = "",
        execution: Execution | None = None,
    ) -> None:
        assert execution is not None
        self._assert_held(execution)
        super().handle_job_failure(job, queue, started_job_registry, exc_string, execution)

    def _assert_held(self, execution: Execution) -> None:
        if not self.holds(execution):
            raise LeaseLostError(f"job {execution.job_id}: its lease was lost")
