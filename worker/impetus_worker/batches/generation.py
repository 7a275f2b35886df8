"""Generation jobs: each joins the running batch of the engine as soon as a place is free, and leaves when it is done.

Only as many jobs are claimed as the engine has places and memory for; the rest wait in Redis, where another worker may
take them. Some places are kept from bulk jobs, so that whoever waits need not wait for a bulk job to end.

Of a backlog of bulk jobs a few more are held, to choose from: those that begin as the one before did go next, so that
the engine reads their beginning once. None is passed by more than a bounded number of later ones.

While jobs are suspected of killing the engine, groups take turns: one of suspects, with nothing beside it, and one of
all interactive jobs that wait when it begins. Other bulk jobs wait until no more are suspected.
"""

from __future__ import annotations

import math
import time
from collections import deque
from itertools import chain, count
from typing import TYPE_CHECKING

from impetus_backends import protocol
from impetus_backends.protocol import Deferred, Generated, Parked, Progress, Rejected
from impetus_producer.contract import StreamEvent, channel_name

from ..allowed import NOTHING
from ..errors import ImpetusError, InferenceError, InvalidRequestError, PoisonedJobError
from ..leases.outcomes import Failed, Finished, News, Outcome, Returned, Said, Started, Stopped
from .batcher import LOADING_PATIENCE_S, Room
from .long_jobs import LongJobs
from .open_generation import OpenGeneration
from .payload import LongPayloadError
from .quarantine import Quarantine
from .requests import GenerationRequests
from .results import GenerationResults

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence, Set

    from impetus_backends.protocol import EngineInfo, Event, GenerationWork
    from impetus_producer.contract import GenerationRequest

    from ..allowed import Allowed
    from ..inbox import ReadElsewhere
    from ..leases.claims import ClaimedJob
    from .long_jobs import Elsewhere

_KEPT_FROM_BULK = 8
"""One place in so many is for jobs whose callers wait."""
_AHEAD_SHARE = 2
"""For so many places one bulk job is held that has none. Another worker has no use of those that are held here."""
_MOST_PASSED = 32
"""A bulk job is passed by no more that came later, while it is held."""
_READING_S = 0.01
"""So long requests are read before the loop looks at the engine and the queues again; one at least."""
_PATIENCE_S = 60.0
"""For a step: the engine gives a sign of life every second between steps."""
_OVERDUE_PATIENCE_S = 15.0
"""For a step from which a job that ran out of time should have come back."""


class GenerationBatcher:
    """`Batcher` for generation jobs. `max_concurrent`: how many decode together. `elsewhere`: reads the long jobs.

    A job's time is counted from when the engine has it, for what happens before its first token may never end either;
    but not while it waits for its model, nor before it begins while a model is being loaded.
    """

    def __init__(
        self,
        info: EngineInfo,
        *,
        worker: str,
        max_concurrent: int,
        allowed: Allowed = NOTHING,
        elsewhere: Elsewhere | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests = GenerationRequests(info, allowed)
        self._results = GenerationResults(info, worker)
        self._max_concurrent = max_concurrent
        self._clock = clock
        self._unread: deque[ClaimedJob] = deque()
        self._long = LongJobs(elsewhere)
        self._waiting: deque[OpenGeneration] = deque()
        self._in_engine: dict[int, OpenGeneration] = {}
        """By the id of their work."""
        self._group: deque[OpenGeneration] | None = None
        """What is left to send of the group whose turn it is; none where all may run together."""
        self._group_is_suspect = False
        self._urgent_suspects: Quarantine[OpenGeneration] = Quarantine()
        self._bulk_suspects: Quarantine[OpenGeneration] = Quarantine()
        self._turns: deque[Quarantine[OpenGeneration] | None] = deque(
            [None, self._urgent_suspects, self._bulk_suspects]
        )
        """While there are suspects: whose turn is next; None is that of the interactive jobs that wait."""
        self._ids = count(1)
        self._window = max_concurrent
        """How many may be on their way to a place. Memory that runs out makes it 1, and each start doubles it."""
        self._full = False
        """Whether there is no memory for another job until one ends."""
        self._last_beginning: int | None = None
        """Of the bulk job that was last given a place."""

    # -- taking in ---------------------------------------------------------------------------------------------------

    def room(self) -> Room:
        everyone = [*self._open()]
        parked = sum(owner.parked for owner in everyone)
        begun = sum(bool(owner.run) for owner in everyone)
        if (self._full and begun) or parked >= self._max_concurrent:
            return Room(interactive=0, bulk=0)
        held_ahead = self._held_ahead()
        held = len(self._unread) + len(self._long) + len(everyone) - parked - held_ahead
        on_their_way = held - begun
        places = max(0, min(self._max_concurrent - held, self._window - on_their_way))
        if self._has_suspects:
            return Room(interactive=places, bulk=0)
        kept = max(0, self._max_concurrent // _KEPT_FROM_BULK - (self._max_concurrent - held - places))
        ahead = max(0, self._max_concurrent // _AHEAD_SHARE - held_ahead)
        return Room(interactive=places, bulk=max(0, places - kept), ahead=ahead)

    def _held_ahead(self) -> int:
        """Of the bulk jobs that wait, those for which there is no place."""
        places = self._max_concurrent - self._max_concurrent // _KEPT_FROM_BULK - self._in_places()
        return max(0, sum(not owner.urgent for owner in self._waiting) - max(0, places))

    def _in_places(self) -> int:
        return sum(not owner.parked for owner in self._in_engine.values())

    def add(self, jobs: Sequence[ClaimedJob]) -> None:
        self._unread.extend(jobs)

    def unread(self) -> Set[str]:
        return {job.id for job in self._unread}

    def read(self, now: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        stop_at = self._clock() + _READING_S
        while self._unread:
            job = self._unread.popleft()
            try:
                request = self._requests.parse(job.fields, self._long.most_bytes)
            except LongPayloadError:
                self._long.send(job)
            except InvalidRequestError as error:
                outcomes.append(Failed(job, error))
            else:
                self._take_in(job, request)
            if self._clock() >= stop_at:
                break
        return outcomes

    def take_back(self, read: ReadElsewhere, now: float) -> list[Outcome]:
        job = self._long.take_back(read.token)
        if job is None:
            return []
        if isinstance(read.came, ImpetusError):
            return [Failed(job, read.came)]
        self._take_in(job, read.came)
        return []

    def _take_in(self, job: ClaimedJob, request: GenerationRequest) -> None:
        owner = OpenGeneration(job, request)
        if job.suspect:
            (self._urgent_suspects if owner.urgent else self._bulk_suspects).admit([owner])
        else:
            self._waiting.append(owner)

    def wakes_at(self) -> float | None:
        return 0.0 if self._unread else None

    # -- giving out --------------------------------------------------------------------------------------------------

    def next_work(self, now: float) -> GenerationWork | None:
        if self._group is not None and not self._group and not self._in_engine:
            self._group = None
        if self._group is None and self._has_suspects:
            if self._in_engine:
                return self._next_before_suspects(now)
            self._group = self._next_group()
        if self._group is not None:
            return self._send(self._group.popleft(), now) if self._group else None
        owner = next((each for each in self._waiting if each.urgent), None) or self._next_bulk()
        if owner is None:
            return None
        self._waiting.remove(owner)
        return self._send(owner, now)

    def _next_bulk(self) -> OpenGeneration | None:
        """The oldest, or one that begins as the last one did; None while there is no place for it."""
        begun = sum(bool(owner.run) for owner in self._in_engine.values())
        parked = len(self._in_engine) - self._in_places()
        places = self._max_concurrent - self._max_concurrent // _KEPT_FROM_BULK
        full = (self._full and begun) or self._in_places() >= places or parked >= self._max_concurrent
        if full or not self._waiting:
            return None
        chosen = oldest = self._waiting[0]
        if oldest.passed < _MOST_PASSED:
            chosen = next((each for each in self._waiting if each.beginning == self._last_beginning), oldest)
        for each in self._waiting:
            if each is chosen:
                break
            each.passed += 1
        self._last_beginning = chosen.beginning
        return chosen

    def _next_before_suspects(self, now: float) -> GenerationWork | None:
        """Suspects came while others run: these are let end, and bulk ones hold up nobody who waits."""
        urgent = next((owner for owner in self._waiting if owner.urgent), None)
        if self._urgent_suspects or urgent is None:
            return None
        self._waiting.remove(urgent)
        return self._send(urgent, now)

    @property
    def _has_suspects(self) -> bool:
        """Whether any job is suspected, waiting or in the engine."""
        has_turn = self._group is not None and self._group_is_suspect and bool(self._group or self._in_engine)
        return has_turn or bool(self._urgent_suspects or self._bulk_suspects)

    def _next_group(self) -> deque[OpenGeneration] | None:
        for turn in list(self._turns):
            group = self._waiting_urgent() if turn is None else turn.next_group() if turn else []
            if group:
                self._turns.remove(turn)
                self._turns.append(turn)
                self._group_is_suspect = turn is not None
                return deque(group)
        return None

    def _waiting_urgent(self) -> list[OpenGeneration]:
        urgent = [owner for owner in self._waiting if owner.urgent]
        self._waiting = deque(owner for owner in self._waiting if not owner.urgent)
        return urgent

    def _send(self, owner: OpenGeneration, now: float) -> GenerationWork:
        work_id = next(self._ids)
        self._in_engine[work_id] = owner
        if not self._loading:
            owner.resume(now)
        return owner.work(work_id)

    # -- taking back -------------------------------------------------------------------------------------------------

    def absorb(self, event: Event, now: float) -> list[News]:
        owner = self._in_engine.get(event.id)
        if owner is None:
            return []
        match event:
            case protocol.Started():
                return self._begin(owner, now)
            case Progress():
                return [
                    self._text(owner, channel_name(event.choice, reasoning=reasoning), text)
                    for reasoning, text in ((True, event.reasoning), (False, event.text))
                    if text
                ]
            case Parked():
                owner.parked = True
                for each in self._in_engine.values():
                    if not each.run:
                        each.pause(now)
                return []
            case Deferred():
                del self._in_engine[event.id]
                self._full, self._window = True, 1
                return [Returned(owner.job)]
        del self._in_engine[event.id]
        self._full = False
        if isinstance(event, Generated):
            return self._finish(owner, event)
        assert isinstance(event, Rejected)
        error = InvalidRequestError(event.message) if event.permanent else InferenceError(event.message)
        return self._end(owner, owner.ending or Failed(owner.job, error))

    def _begin(self, owner: OpenGeneration, now: float) -> list[News]:
        """A run of its own: what an earlier one said is void."""
        owner.parked = False
        for each in self._in_engine.values():
            if not each.parked:
                each.resume(now)  # the engine steps again, whatever it may have been loading
        owner.run, owner.streamed = f"{owner.job.token}:{next(self._ids)}", {}
        self._window = min(self._max_concurrent, 2 * self._window)
        news: list[News] = [Started(owner.job, awaited=owner.request.cancel_if_abandoned)]
        if owner.request.stream:
            news.append(Said(owner.job, StreamEvent.START, owner.run))
        return news

    def _text(self, owner: OpenGeneration, channel: str, text: str) -> Said:
        at = owner.streamed.get(channel, 0)
        owner.streamed[channel] = at + len(text)
        return Said(owner.job, StreamEvent.TEXT, owner.run, at=at, text=text, channel=channel)

    def _finish(self, owner: OpenGeneration, event: Generated) -> list[News]:
        news: list[News] = []
        if owner.request.stream and owner.run:
            for choice, answer in enumerate(event.answers):
                for reasoning, text in ((True, answer.reasoning or ""), (False, answer.text)):
                    channel = channel_name(choice, reasoning=reasoning)
                    if rest := text[owner.streamed.get(channel, 0) :]:
                        news.append(self._text(owner, channel, rest))
        if event.answers[-1].finish_reason == "cancelled":
            outcome = owner.ending or Stopped(owner.job)
            return [*news, *self._end(owner, outcome, self._results.of(event))]
        return [*news, *self._end(owner, Finished(owner.job, self._results.of(event)))]

    def _end(self, owner: OpenGeneration, outcome: Finished | Failed | Stopped, made: bytes = b"") -> list[News]:
        """The outcome, and before it the stream's end: for readers, and to keep what was made."""
        status = {Finished: "finished", Failed: "failed", Stopped: "stopped"}[type(outcome)]
        if status == "failed" and owner.job.fields.get(b"retries_left"):
            return [outcome]  # RQ runs it again, in a run of its own
        if owner.request.stream or made:
            return [Said(owner.job, StreamEvent.END, owner.run, status=status, result=made), outcome]
        return [outcome]

    # -- when things end otherwise -----------------------------------------------------------------------------------

    def interrupt(self, outcome: Failed | Stopped) -> tuple[list[int], list[News]]:
        for work, owner in self._in_engine.items():
            if owner.job.id == outcome.job.id:
                if owner.ending is not None:
                    return [], []
                owner.ending = outcome
                return [work], []
        owners = [owner for owner in self._open() if owner.job.id == outcome.job.id]
        self.forget([outcome.job.id])
        return [], self._end(owners[0], outcome) if owners else [outcome]

    def forget(self, job_ids: Collection[str]) -> list[int]:
        def is_wanted(owner: OpenGeneration) -> bool:
            return owner.job.id not in job_ids

        self._unread = deque(job for job in self._unread if job.id not in job_ids)
        self._long.forget(job_ids)
        self._waiting = deque(filter(is_wanted, self._waiting))
        if self._group is not None:
            self._group = deque(filter(is_wanted, self._group))
        self._urgent_suspects.keep(is_wanted)
        self._bulk_suspects.keep(is_wanted)
        works = [work for work, owner in self._in_engine.items() if owner.job.id in job_ids]
        for work in works:
            del self._in_engine[work]
            self._full = False
        return works

    def overdue(self, now: float) -> list[ClaimedJob]:
        owners = [owner for owner in self._in_engine.values() if owner.ending is None]
        spent = [(owner.job, owner.job.timeout_s, owner.spent_s(now) or 0.0) for owner in owners]
        return [job for job, timeout_s, spent_s in spent if timeout_s is not None and spent_s > timeout_s]

    def engine_s(self, job_id: str, now: float) -> float | None:
        owner = self._find(job_id)
        return owner.spent_s(now) if owner is not None else None

    # -- what the engine does ----------------------------------------------------------------------------------------

    def has_begun(self, job_id: str) -> bool:
        owner = self._find(job_id)
        return owner is not None and bool(owner.run)

    def begun(self) -> Set[str]:
        return {owner.job.id for owner in self._to_blame()}

    def _to_blame(self) -> list[OpenGeneration]:
        """What had not begun is innocent, unless nothing had: then it is what the engine dies of."""
        held = [owner for owner in self._in_engine.values() if owner.ending is None]
        return [owner for owner in held if owner.run] or held

    @property
    def has_work(self) -> bool:
        return bool(self._in_engine)

    @property
    def _loading(self) -> bool:
        """Whether the engine may be loading another model, and nothing else."""
        return any(owner.parked for owner in self._in_engine.values())

    def patience_s(self, now: float) -> float:
        if not self._in_engine:
            return math.inf
        if self._loading:
            return LOADING_PATIENCE_S
        overdue = any(isinstance(owner.ending, Failed) for owner in self._in_engine.values())
        return _OVERDUE_PATIENCE_S if overdue else _PATIENCE_S

    def _open(self) -> Iterator[OpenGeneration]:
        waiting = chain(self._group or (), self._waiting, self._urgent_suspects, self._bulk_suspects)
        return chain(self._in_engine.values(), waiting)

    def _find(self, job_id: str) -> OpenGeneration | None:
        return next((owner for owner in self._open() if owner.job.id == job_id), None)

    def engine_died(self, now: float, *, suspect: bool) -> list[News]:
        held, to_blame = list(self._in_engine.values()), self._to_blame() if suspect else []
        self._in_engine.clear()
        self._full = False
        news = [each for owner in held if owner.ending is not None for each in self._end(owner, owner.ending)]
        for owner in held:
            owner.pause(now)
            owner.parked, owner.run = False, ""
        innocent = [owner for owner in held if owner.ending is None and owner not in to_blame]
        again = [*self._judge(to_blame, news, alone=len(held) == 1), *innocent]
        self._put_back([owner for owner in held if owner in again])
        return news

    def _judge(self, begun: list[OpenGeneration], news: list[News], *, alone: bool) -> list[OpenGeneration]:
        """Those of a group that run again as before."""
        again: list[OpenGeneration] = []
        for owner in begun:
            owner.engine_s = 0.0  # it runs anew
        for quarantine, urgent in ((self._urgent_suspects, True), (self._bulk_suspects, False)):
            if part := [owner for owner in begun if owner.urgent is urgent]:
                verdict = quarantine.after_death(part, alone=alone)
                again += verdict.again
                for owner in verdict.poison:
                    message = "the engine died each time it ran this job, and nothing beside it"
                    news += self._end(owner, Failed(owner.job, PoisonedJobError(message)))
        return again

    def _put_back(self, owners: list[OpenGeneration]) -> None:
        """They run again first; what remains of a group of suspects waits for its next turn."""
        if self._group is None:
            self._waiting.extendleft(reversed(owners))
            return
        group = [*owners, *self._group]
        self._group = None
        if self._group_is_suspect:
            for quarantine, urgent in ((self._urgent_suspects, True), (self._bulk_suspects, False)):
                quarantine.put_back([owner for owner in group if owner.urgent is urgent])
        else:
            self._waiting.extendleft(reversed(group))
