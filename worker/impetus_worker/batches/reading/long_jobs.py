"""The jobs that are too long for the loop to read, while another process reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from impetus_producer.contract import BULK_QUEUES, MAX_PAYLOAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Collection

    from ...leases.claims import ClaimedJob

_LONG_BYTES = 131_072
"""Of a payload, inflated: 64 texts of 2 KB. Whatever so much holds is read in half a second, mostly in a hundredth."""


class Elsewhere(Protocol):
    """Where long jobs are read. What comes of a run is told under its token; neither method waits."""

    def read(self, job: ClaimedJob, *, urgent: bool) -> None: ...

    def forget(self, tokens: Collection[str]) -> None: ...


class LongJobs:
    """Without an `elsewhere` no job is too long."""

    def __init__(self, elsewhere: Elsewhere | None) -> None:
        self._elsewhere = elsewhere
        self._jobs: dict[str, ClaimedJob] = {}
        """By their tokens."""
        self.most_bytes = MAX_PAYLOAD_BYTES if elsewhere is None else _LONG_BYTES
        """What the loop reads itself, inflated."""

    def __len__(self) -> int:
        return len(self._jobs)

    def send(self, job: ClaimedJob) -> None:
        assert self._elsewhere is not None
        self._jobs[job.token] = job
        self._elsewhere.read(job, urgent=is_urgent(job))

    def take_back(self, token: str) -> ClaimedJob | None:
        """The job of this run, unless nobody wants it any more."""
        return self._jobs.pop(token, None)

    def forget(self, job_ids: Collection[str]) -> None:
        if tokens := [token for token, job in self._jobs.items() if job.id in job_ids]:
            assert self._elsewhere is not None
            self._elsewhere.forget(tokens)
            for token in tokens:
                del self._jobs[token]

    def count(self, *, urgent: bool) -> int:
        return sum(is_urgent(job) == urgent for job in self._jobs.values())

    def payload_bytes(self, *, urgent: bool) -> int:
        return sum(payload_bytes(job) for job in self._jobs.values() if is_urgent(job) == urgent)


def is_urgent(job: ClaimedJob) -> bool:
    """Whether its caller waits."""
    return job.queue not in BULK_QUEUES


def payload_bytes(job: ClaimedJob) -> int:
    """As it lies in Redis."""
    return len(job.fields.get(b"data", b""))
