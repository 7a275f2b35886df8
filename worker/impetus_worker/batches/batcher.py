"""What the worker's loop asks of a role: how much to claim, what to run next, and which jobs that completed.

Two roles implement `Batcher`: `EmbeddingBatcher` packs the texts of many jobs into batches, `GenerationBatcher` lets
jobs join the running batch one by one. Neither knows Redis or processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.protocol import EngineInfo, Event, Work

    from ..leases.claims import ClaimedJob
    from ..leases.outcomes import Failed, News, Outcome, Stopped


@dataclass(frozen=True, slots=True)
class Room:
    """How many jobs to claim now: from the queue whose callers wait, and from both."""

    interactive: int
    bulk: int


class Batcher(Protocol):
    def room(self) -> Room:
        """How many jobs there is room for, beside those taken in."""
        ...

    def add(self, jobs: Sequence[ClaimedJob]) -> None:
        """Takes jobs in, and does not look at them yet."""

    def prepare(self, now: float) -> list[Outcome]:
        """Reads what was taken in, for a moment; returns the outcomes of jobs that end by it, such as a `Failed` for a
        bad request."""
        ...

    def next_work(self, now: float) -> Work | None:
        """What the engine should be given now, if anything. Ask again until there is nothing."""

    def wakes_at(self) -> float | None:
        """When there will be something to prepare or to run though nothing else happens; a time long past for now."""

    def absorb(self, event: Event) -> Sequence[News]:
        """Takes what the engine says; returns what there is to tell of jobs, their outcomes last."""
        ...

    def drop(self, job_id: str) -> list[int]:
        """Forgets a job, wherever it is; returns the work to cancel in the engine."""
        ...

    def interrupt(self, outcome: Failed | Stopped) -> tuple[list[int], Sequence[News]]:
        """Ends a job so, wherever it is: (the work to cancel in the engine, what there is to tell now).

        What the engine has made of it until then is kept if it can be: then the outcome comes from a later `absorb`.
        """
        ...

    @property
    def loading(self) -> bool:
        """Whether the engine may be silent for long because it loads another model."""
        ...

    def in_engine(self, job_id: str) -> bool:
        """Whether the engine may be running part of this job now."""
        ...

    def started_at(self, job_id: str) -> float | None:
        """When the engine was first given part of this job."""

    def engine_died(self, *, suspect: bool) -> Sequence[News]:
        """All that the engine held is to run again, alone if it is suspect; returns the jobs now known to be poison."""
        ...


def check_model(asked: str | None, info: EngineInfo) -> None:
    """Raises `InvalidRequestError` when a request asks for a model that this engine does not serve."""
    if asked is not None and asked not in info.model_aliases:
        served = ", ".join((info.model, *info.more_models))
        raise InvalidRequestError(
            f"model: this worker serves {served} and not {asked!r:.200}; start one with "
            f"`impetus-worker run --{info.kind}-model …`"
        )


def provenance(info: EngineInfo, worker: str) -> dict[str, str | None]:
    """The contract's `Provenance`, the same for every result of an engine."""
    return {
        "worker": worker,
        "backend": info.backend,
        "device": info.device,
        "fingerprint": info.fingerprint,
        "note": info.note,
    }
