"""Generation jobs: each joins the running batch of the engine as soon as a place is free, and leaves when it is done.

Only as many jobs are claimed as the engine has places; the rest wait in Redis, where another worker may take them.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from itertools import chain, count
from typing import TYPE_CHECKING

from impetus_backends.protocol import Generated, GenerationWork, Rejected
from impetus_producer.contract import GENERATE_FUNCTION, GENERATION_QUEUE, GenerationRequest, parse_request

from .batching import Failed, Finished, Outcome, Room, check_model, provenance
from .errors import InferenceError, InvalidRequestError, PoisonedJobError
from .payload import read_payload
from .quarantine import Quarantine

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from impetus_backends.protocol import EngineInfo, Event

    from .claims import ClaimedJob


@dataclass(eq=False, slots=True)
class _OpenJob:
    job: ClaimedJob
    request: GenerationRequest
    started_at: float | None = None


class GenerationBatcher:
    """`Batcher` for generation jobs. `max_concurrent`: how many decode together."""

    def __init__(
        self, info: EngineInfo, *, worker: str, max_concurrent: int, allowed_callbacks: Collection[str] = ()
    ) -> None:
        self._info = info
        self._provenance = provenance(info, worker)
        self._max_concurrent = max_concurrent
        self._allowed_callbacks = allowed_callbacks
        self._unread: deque[ClaimedJob] = deque()
        self._waiting: deque[_OpenJob] = deque()
        self._running: dict[int, _OpenJob] = {}
        self._suspects: deque[_OpenJob] | None = None
        """The group that runs with nothing beside it; none when nothing is suspect."""
        self._ids = count(1)
        self._quarantine: Quarantine[_OpenJob] = Quarantine()

    def room(self) -> Room:
        held = len(self._unread) + sum(1 for _ in self._open())
        places = max(0, self._max_concurrent - held)
        return Room(interactive=places, bulk=places)

    def add(self, jobs: Sequence[ClaimedJob]) -> None:
        self._unread.extend(jobs)

    def prepare(self, now: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        while self._unread:
            job = self._unread.popleft()
            try:
                payload = read_payload(job.fields, GENERATE_FUNCTION, self._allowed_callbacks)
                request = parse_request(GenerationRequest, payload)
                check_model(request.model, self._info)
            except InvalidRequestError as error:
                outcomes.append(Failed(job, error))
            else:
                self._waiting.append(_OpenJob(job, request))
        return outcomes

    def next_work(self, now: float) -> GenerationWork | None:
        if self._suspects is not None and not self._suspects and not self._running:
            self._suspects = None
        if self._suspects is None and self._quarantine:
            if self._running:
                return None
            self._suspects = deque(self._quarantine.next_group())
        queue = self._waiting if self._suspects is None else self._suspects
        return self._send(queue.popleft(), now) if queue else None

    def _send(self, owner: _OpenJob, now: float) -> GenerationWork:
        owner.started_at = now if owner.started_at is None else owner.started_at
        work_id, request = next(self._ids), owner.request
        self._running[work_id] = owner
        return GenerationWork(
            id=work_id,
            prompt=request.prompt,
            messages=tuple((each.role, each.content) for each in request.messages) if request.messages else None,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            stop=tuple(request.stop),
            seed=request.seed,
            urgent=owner.job.queue == GENERATION_QUEUE,
        )

    def wakes_at(self) -> float | None:
        return 0.0 if self._unread else None

    def absorb(self, event: Event) -> list[Outcome]:
        owner = self._running.pop(event.id, None)
        if owner is None:
            return []
        self._quarantine.cleared(owner)
        if isinstance(event, Rejected):
            error = InvalidRequestError(event.message) if event.permanent else InferenceError(event.message)
            return [Failed(owner.job, error)]
        assert isinstance(event, Generated)
        return [Finished(owner.job, self._result(event))]

    def _result(self, event: Generated) -> bytes:
        result = {
            "object": "generation",
            "text": event.text,
            "finish_reason": event.finish_reason,
            "model": self._info.model,
            "usage": {"prompt_tokens": event.prompt_tokens, "completion_tokens": event.completion_tokens},
            "timings": {"first_token_s": round(event.first_token_s, 6), "total_s": round(event.total_s, 6)},
            "provenance": self._provenance,
        }
        return json.dumps(result, separators=(",", ":")).encode()

    def drop(self, job_id: str) -> list[int]:
        self._unread = deque(job for job in self._unread if job.id != job_id)
        self._waiting = deque(owner for owner in self._waiting if owner.job.id != job_id)
        if self._suspects is not None:
            self._suspects = deque(owner for owner in self._suspects if owner.job.id != job_id)
        self._quarantine.discard([owner for owner in self._quarantine.items() if owner.job.id == job_id])
        works = [work for work, owner in self._running.items() if owner.job.id == job_id]
        for work in works:
            del self._running[work]
        return works

    def in_engine(self, job_id: str) -> bool:
        return any(owner.job.id == job_id for owner in self._running.values())

    def started_at(self, job_id: str) -> float | None:
        return next((owner.started_at for owner in self._open() if owner.job.id == job_id), None)

    def _open(self) -> Iterator[_OpenJob]:
        return chain(self._running.values(), self._suspects or (), self._waiting, self._quarantine.items())

    def engine_died(self, *, suspect: bool) -> list[Outcome]:
        running = list(self._running.values())
        self._running.clear()
        if not suspect:
            (self._waiting if self._suspects is None else self._suspects).extendleft(reversed(running))
            return []
        unstarted = list(self._suspects or ())
        self._suspects = deque(unstarted) if unstarted else None
        message = "the engine died each time it ran this job, and nothing beside it"
        return [Failed(owner.job, PoisonedJobError(message)) for owner in self._quarantine.after_death([running])]
