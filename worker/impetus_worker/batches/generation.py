"""Generation jobs: each joins the running batch of the engine as soon as a place is free, and leaves when it is done.

Only as many jobs are claimed as the engine has places and memory for; the rest wait in Redis, where another worker may
take them. Some places are kept from bulk jobs, so that whoever waits need not wait for a bulk job to end.
"""

from __future__ import annotations

import json
import time
from collections import deque
from dataclasses import dataclass
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from impetus_backends import protocol
from impetus_backends.protocol import Deferred, Generated, GenerationWork, Parked, Progress, Rejected
from impetus_producer.contract import GENERATE_FUNCTION, GenerationRequest, StreamEvent, parse_request

from ..errors import InferenceError, InvalidRequestError, PoisonedJobError
from ..leases.outcomes import Failed, Finished, News, Outcome, Returned, Said, Started, Stopped
from .batcher import Room, check_model, provenance
from .payload import read_payload
from .quarantine import Quarantine

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from impetus_backends.protocol import EngineInfo, Event

    from ..leases.claims import ClaimedJob

_KEPT_FROM_BULK = 8
"""One place in so many is for jobs whose callers wait."""


@dataclass(eq=False, slots=True)
class _OpenJob:
    job: ClaimedJob
    request: GenerationRequest
    started_at: float | None = None
    parked: bool = False
    """Whether it waits in the engine for its model, and so takes no place."""
    run: str = ""
    """Names what the engine has begun of it, and is empty until it has."""
    streamed: int = 0
    """How many characters of this run's text have been told."""
    ending: Failed | Stopped | None = None
    """How it is to end as soon as the engine has handed over what it made."""


class GenerationBatcher:
    """`Batcher` for generation jobs. `max_concurrent`: how many decode together."""

    def __init__(
        self,
        info: EngineInfo,
        *,
        worker: str,
        max_concurrent: int,
        allowed_callbacks: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._info = info
        self._provenance = provenance(info, worker)
        self._max_concurrent = max_concurrent
        self._allowed_callbacks = allowed_callbacks
        self._clock = clock
        self._unread: deque[ClaimedJob] = deque()
        self._waiting: deque[_OpenJob] = deque()
        self._running: dict[int, _OpenJob] = {}
        """In the engine, by the id of their work."""
        self._suspects: deque[_OpenJob] | None = None
        """The group that runs with nothing beside it; none when nothing is suspect."""
        self._ids = count(1)
        self._quarantine: Quarantine[_OpenJob] = Quarantine()
        self._window = max_concurrent
        """How many may be on their way to a place. Memory that runs out makes it 1, and each start doubles it."""
        self._full = False
        """Whether there is no memory for another job until one ends."""

    def room(self) -> Room:
        everyone = [*self._open()]
        parked = sum(owner.parked for owner in everyone)
        begun = sum(bool(owner.run) for owner in everyone)
        if (self._full and begun) or parked >= self._max_concurrent:
            return Room(interactive=0, bulk=0)
        held = len(self._unread) + len(everyone) - parked
        on_their_way = held - begun
        places = max(0, min(self._max_concurrent - held, self._window - on_their_way))
        kept = max(0, self._max_concurrent // _KEPT_FROM_BULK - (self._max_concurrent - held - places))
        return Room(interactive=places, bulk=max(0, places - kept))

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
        return self._send(queue.popleft()) if queue else None

    def _send(self, owner: _OpenJob) -> GenerationWork:
        work_id, request = next(self._ids), owner.request
        self._running[work_id] = owner
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
            model=request.model,
            stream=request.stream,
        )

    def wakes_at(self) -> float | None:
        return 0.0 if self._unread else None

    def absorb(self, event: Event) -> list[News]:
        owner = self._running.get(event.id)
        if owner is None:
            return []
        match event:
            case protocol.Started():
                return self._begin(owner)
            case Progress(text=text):
                return [self._text(owner, text)]
            case Parked():
                owner.parked = True
                return []
            case Deferred():
                del self._running[event.id]
                self._full, self._window = True, 1
                return [Returned(owner.job)]
        del self._running[event.id]
        self._full = False
        if isinstance(event, Generated):
            return self._finish(owner, event)
        assert isinstance(event, Rejected)
        error = InvalidRequestError(event.message) if event.permanent else InferenceError(event.message)
        return self._end(owner, owner.ending or Failed(owner.job, error))

    def _begin(self, owner: _OpenJob) -> list[News]:
        """A run of its own: what an earlier one said is void."""
        owner.started_at = owner.started_at or self._clock()
        owner.parked = False
        owner.run, owner.streamed = f"{owner.job.execution_id}:{next(self._ids)}", 0
        self._window = min(self._max_concurrent, 2 * self._window)
        news: list[News] = [Started(owner.job, awaited=owner.request.cancel_if_abandoned)]
        if owner.request.stream:
            news.append(Said(owner.job, StreamEvent.START, owner.run))
        return news

    def _text(self, owner: _OpenJob, text: str) -> Said:
        said = Said(owner.job, StreamEvent.TEXT, owner.run, at=owner.streamed, text=text)
        owner.streamed += len(text)
        return said

    def _finish(self, owner: _OpenJob, event: Generated) -> list[News]:
        news: list[News] = []
        if owner.request.stream and owner.run and len(event.text) > owner.streamed:
            news.append(self._text(owner, event.text[owner.streamed :]))
        if event.finish_reason == "cancelled":
            outcome = owner.ending or Stopped(owner.job)
            return [*news, *self._end(owner, outcome, self._result(event))]
        return [*news, *self._end(owner, Finished(owner.job, self._result(event)))]

    def _end(self, owner: _OpenJob, outcome: Finished | Failed | Stopped, made: bytes = b"") -> list[News]:
        """The outcome, and before it the stream's end: for readers, and to keep what was made."""
        self._quarantine.cleared(owner)
        status = {Finished: "finished", Failed: "failed", Stopped: "stopped"}[type(outcome)]
        if status == "failed" and owner.job.fields.get(b"retries_left"):
            return [outcome]  # RQ runs it again, in a run of its own
        if owner.request.stream or made:
            return [Said(owner.job, StreamEvent.END, owner.run, status=status, result=made), outcome]
        return [outcome]

    def _result(self, event: Generated) -> bytes:
        usage = {"prompt_tokens": event.prompt_tokens, "completion_tokens": event.completion_tokens}
        result: dict[str, Any] = {
            "object": "generation",
            "text": event.text,
            "finish_reason": event.finish_reason,
            "model": event.model,
            "usage": usage | {"cached_tokens": event.cached_tokens},
            "timings": {"first_token_s": round(event.first_token_s, 6), "total_s": round(event.total_s, 6)},
            "provenance": self._provenance | {"fingerprint": event.fingerprint, "note": event.note},
        }
        if event.logprobs is not None:
            result["logprobs"] = [{"token": token, "logprob": round(each, 6)} for token, each in event.logprobs]
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
            self._full = False
        return works

    def interrupt(self, outcome: Failed | Stopped) -> tuple[list[int], list[News]]:
        for work, owner in self._running.items():
            if owner.job.id == outcome.job.id:
                if owner.ending is not None:
                    return [], []
                owner.ending = outcome
                return [work], []
        owners = [owner for owner in self._open() if owner.job.id == outcome.job.id]
        self.drop(outcome.job.id)
        return [], self._end(owners[0], outcome) if owners else [outcome]

    @property
    def loading(self) -> bool:
        return any(owner.parked for owner in self._running.values())

    def in_engine(self, job_id: str) -> bool:
        return any(owner.job.id == job_id for owner in self._running.values())

    def started_at(self, job_id: str) -> float | None:
        return next((owner.started_at for owner in self._open() if owner.job.id == job_id), None)

    def _open(self) -> Iterator[_OpenJob]:
        return chain(self._running.values(), self._suspects or (), self._waiting, self._quarantine.items())

    def engine_died(self, *, suspect: bool) -> list[News]:
        held = list(self._running.values())
        self._running.clear()
        self._full = False
        news = [each for owner in held if owner.ending is not None for each in self._end(owner, owner.ending)]
        running = [owner for owner in held if owner.ending is None]
        # What had not begun is innocent, unless nothing had: then it was what the engine died of.
        begun = ([owner for owner in running if owner.run] or running) if suspect else []
        unbegun = [owner for owner in running if owner not in begun]
        for owner in held:
            owner.parked, owner.run = False, ""
        (self._waiting if self._suspects is None else self._suspects).extendleft(reversed(unbegun))
        if not suspect:
            return news
        unstarted = list(self._suspects or ())
        self._suspects = deque(unstarted) if unstarted else None
        message = "the engine died each time it ran this job, and nothing beside it"
        for owner in self._quarantine.after_death([begun] if begun else []):
            news += self._end(owner, Failed(owner.job, PoisonedJobError(message)))
        return news
