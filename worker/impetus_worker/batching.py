"""What the worker's loop asks of a role: how much to claim, what to run next, and which jobs that completed.

Two roles implement `Batcher`: `EmbeddingBatcher` packs the texts of many jobs into batches, `GenerationBatcher` lets
jobs join the running batch one by one. Neither knows Redis or processes.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.protocol import EngineInfo, Event, Work
    from impetus_producer.contract import StreamEvent

    from .claims import ClaimedJob


@dataclass(frozen=True, slots=True)
class Finished:
    job: ClaimedJob
    result: bytes
    """The result as JSON."""
    vectors: bytes | None = None
    """The vectors of a request for `raw` ones, which its JSON then leaves out."""

    def whole(self) -> dict[str, Any]:
        """The result in one piece, for whoever can store no more than a return value."""
        result: dict[str, Any] = json.loads(self.result)
        if self.vectors is not None:
            data = base64.b64encode(self.vectors).decode("ascii")
            result["embeddings"] |= {"encoding": "base64", "data": data}
        return result


@dataclass(frozen=True, slots=True)
class Failed:
    job: ClaimedJob
    error: Exception


@dataclass(frozen=True, slots=True)
class Stopped:
    """Ends without a result, because nobody wants it any more."""

    job: ClaimedJob
    reason: str = "stopped by its user"


@dataclass(frozen=True, slots=True)
class Returned:
    """Goes back to the front of its queue, as if never claimed."""

    job: ClaimedJob


Outcome: TypeAlias = Finished | Failed | Stopped | Returned


@dataclass(frozen=True, slots=True)
class Said:
    """What a running generation says to whoever reads its token stream; the job goes on."""

    job: ClaimedJob
    event: StreamEvent
    run: str
    """Names this run of the job, and no other."""
    at: int = 0
    """With text: how many characters of this run came before it."""
    text: str = ""
    status: str = ""
    """With the end: how the job ends."""
    result: bytes = b""
    """With the end, where there is no other result: what was made until then, as JSON."""


@dataclass(frozen=True, slots=True)
class Started:
    """The engine has begun with the job. `awaited`: it is to run only as long as somebody waits for it."""

    job: ClaimedJob
    awaited: bool = False


News: TypeAlias = Outcome | Said | Started


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
