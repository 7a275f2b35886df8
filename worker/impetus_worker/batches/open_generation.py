"""A generation job on its way: what it asks for, whose time passes, and how far its stream has been told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from impetus_backends.protocol import GenerationWork
from impetus_producer.contract import GENERATION_QUEUE

from .quarantine import Witness

if TYPE_CHECKING:
    from impetus_producer.contract import GenerationRequest

    from ..leases.claims import ClaimedJob
    from ..leases.outcomes import Failed, Stopped


@dataclass(eq=False, slots=True)
class OpenGeneration(Witness):
    """A generation job whose request is read, and how far the engine has come with it."""

    job: ClaimedJob
    request: GenerationRequest
    engine_s: float | None = None
    """How long the engine had it, the time since `counted_from` aside; None if it never did."""
    counted_from: float | None = None
    """None while its time is not counted."""
    parked: bool = False
    """Whether it waits in the engine for its model, and so takes no place."""
    run: str = ""
    """Names what the engine has begun of it, and is empty until it has."""
    streamed: int = 0
    """How many characters of this run's text have been told."""
    ending: Failed | Stopped | None = None
    """How it is to end as soon as the engine has handed over what it made."""

    @property
    def urgent(self) -> bool:
        return self.job.queue == GENERATION_QUEUE

    def resume(self, now: float) -> None:
        """Its time is the engine's from now on."""
        if self.counted_from is None:
            self.engine_s, self.counted_from = self.engine_s or 0.0, now

    def pause(self, now: float) -> None:
        """Its time is not the engine's for now."""
        self.engine_s, self.counted_from = self.spent_s(now), None

    def spent_s(self, now: float) -> float | None:
        if self.engine_s is None or self.counted_from is None:
            return self.engine_s
        return self.engine_s + now - self.counted_from

    def work(self, work_id: int) -> GenerationWork:
        """What the engine is asked for."""
        request = self.request
        return GenerationWork(
            id=work_id,
            prompt=request.prompt,
            messages=tuple((each.role, each.content) for each in request.messages) if request.messages else None,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            min_p=request.min_p,
            repetition_penalty=request.repetition_penalty,
            stop=tuple(request.stop),
            seed=request.seed,
            logprobs=request.logprobs,
            schema=request.response_format.schema_text() if request.response_format is not None else None,
            special_tokens=request.special_tokens,
            model=request.model,
            stream=request.stream,
        )
