"""Generation jobs: each joins the running batch of the engine as soon as a place is free, and leaves when it is done.

Only as many jobs are claimed as the engine has places and memory for; the rest wait in Redis, where another worker may
take them. Some places are kept from bulk jobs, so that whoever waits need not wait for a bulk job to end.

Of a backlog a few more are held: bulk jobs to choose from (`turns.py`), and such whose callers wait, in line in the
engine itself. One of these begins in the very step after another's end, where to claim one then leaves the place empty
for a step or two. There are no more of them than get a place within a second by the pace of late (`pace.py`), and one
that waits for longer than it should goes back to Redis.
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
from .open_generation import OpenGeneration
from .planning.pace import Pace
from .planning.turns import Turns
from .reading.long_jobs import LongJobs
from .reading.payload import LongPayloadError
from .reading.requests import GenerationRequests
from .results import GenerationResults

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence, Set

    from impetus_backends.protocol import EngineInfo, Event, GenerationWork

    from ..allowed import Allowed
    from ..inbox import ReadElsewhere
    from ..leases.claims import ClaimedJob
    from .reading.long_jobs import Elsewhere

_KEPT_FROM_BULK = 8
"""One place in so many is for jobs whose callers wait."""
_AHEAD_SHARE = 2
"""For so many places one bulk job is held that has none. Another worker has no use of those that are held here."""
_IN_LINE_SHARE = 8
"""For so many places one job is in line for the next that is free."""
_IN_LINE_S = 1.0
"""Within so long it is to be its turn."""
_OUT_OF_LINE_S = 3.0
"""After so long it may be another worker's."""
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
        self._turns = Turns()
        self._pace = Pace()
        self._line = 0 if info.others else max(1, max_concurrent // _IN_LINE_SHARE)
        """The most that are in line. An engine of several models has places for each, and would begin them at once."""
        self._in_engine: dict[int, OpenGeneration] = {}
        """By the id of their work."""
        self._ids = count(1)
        self._window = max_concurrent
        """How many may be on their way to a place. Memory that runs out makes it 1, and each start doubles it."""
        self._full = False
        """Whether there is no memory for another job until one ends."""

    @property
    def cost(self) -> None:
        """It packs no batches."""

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
        if self._turns.has_suspects(engine_busy=self.has_work):
            return Room(interactive=places, bulk=0)
        kept = max(0, self._max_concurrent // _KEPT_FROM_BULK - (self._max_concurrent - held - places))
        ahead = max(0, self._max_concurrent // _AHEAD_SHARE - held_ahead)
        line = min(self._line, self._pace.within(_IN_LINE_S, self._clock()))
        in_line = max(0, min(self._max_concurrent + line - held, self._window - on_their_way) - places)
        return Room(interactive=places, bulk=max(0, places - kept), ahead=ahead, in_line=in_line)

    def _held_ahead(self) -> int:
        """Of the bulk jobs that wait, those for which there is no place."""
        places = self._max_concurrent - self._max_concurrent // _KEPT_FROM_BULK - self._in_places()
        return max(0, self._turns.waiting_bulk - max(0, places))

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
                self._turns.add(OpenGeneration(job, request))
            if self._clock() >= stop_at:
                break
        return outcomes

    def take_back(self, read: ReadElsewhere, now: float) -> list[Outcome]:
        job = self._long.take_back(read.token)
        if job is None:
            return []
        if isinstance(read.came, ImpetusError):
            return [Failed(job, read.came)]
        self._turns.add(OpenGeneration(job, read.came))
        return []

    def wakes_at(self) -> float | None:
        return 0.0 if self._unread else None

    # -- giving out --------------------------------------------------------------------------------------------------

    def next_work(self, now: float) -> GenerationWork | None:
        owner = self._turns.next(engine_busy=self.has_work, has_room_for_bulk=self._has_room_for_bulk)
        return None if owner is None else self._send(owner, now)

    def _has_room_for_bulk(self) -> bool:
        begun = sum(bool(owner.run) for owner in self._in_engine.values())
        parked = len(self._in_engine) - self._in_places()
        places = self._max_concurrent - self._max_concurrent // _KEPT_FROM_BULK
        return not (self._full and begun) and self._in_places() < places and parked < self._max_concurrent

    def _send(self, owner: OpenGeneration, now: float) -> GenerationWork:
        work_id = next(self._ids)
        self._in_engine[work_id] = owner
        owner.sent_at = now
        if not self._loading:
            self._count_time(now)
        return owner.work(work_id)

    def _count_time(self, now: float) -> None:
        """From now on the engine's time is that of all that have a place in it, or could have begun to have one."""
        for owner in self._by_place()[: self._max_concurrent]:
            owner.resume(now)

    def _by_place(self) -> list[OpenGeneration]:
        """What wants a place in the engine: what has one, then what is next."""
        return sorted((each for each in self._in_engine.values() if not each.parked), key=lambda each: not each.run)

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
        self._pace.freed(self._clock())
        if not self._loading:
            self._count_time(now)
        if isinstance(event, Generated):
            return self._finish(owner, event)
        assert isinstance(event, Rejected)
        error = InvalidRequestError(event.message) if event.permanent else InferenceError(event.message)
        return self._end(owner, owner.ending or Failed(owner.job, error))

    def _begin(self, owner: OpenGeneration, now: float) -> list[News]:
        """A run of its own: what an earlier one said is void."""
        owner.parked = False
        owner.run, owner.streamed = f"{owner.job.token}:{next(self._ids)}", {}
        self._count_time(now)  # the engine steps again, whatever it may have been loading
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
        if any(answer.finish_reason == "cancelled" for answer in event.answers):
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
        self._turns.keep(is_wanted)
        works = [work for work, owner in self._in_engine.items() if owner.job.id in job_ids]
        for work in works:
            del self._in_engine[work]
            self._full = False
        return works

    def overdue(self, now: float) -> list[ClaimedJob]:
        owners = [owner for owner in self._in_engine.values() if owner.ending is None]
        spent = [(owner.job, owner.job.timeout_s, owner.spent_s(now) or 0.0) for owner in owners]
        return [job for job, timeout_s, spent_s in spent if timeout_s is not None and spent_s > timeout_s]

    def out_of_line(self, now: float) -> list[ClaimedJob]:
        if len(self._in_engine) <= self._max_concurrent:
            return []
        in_line = self._by_place()[self._max_concurrent :]
        return [owner.job for owner in in_line if now - owner.sent_at > _OUT_OF_LINE_S and owner.ending is None]

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
        return chain(self._in_engine.values(), self._turns)

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
        self._turns.put_back([owner for owner in held if owner in again])
        return news

    def _judge(self, begun: list[OpenGeneration], news: list[News], *, alone: bool) -> list[OpenGeneration]:
        """Those of a group that run again as before."""
        for owner in begun:
            owner.engine_s = 0.0  # it runs anew
        verdict = self._turns.after_death(begun, alone=alone)
        for owner in verdict.poison:
            message = "the engine died each time it ran this job, and nothing beside it"
            news += self._end(owner, Failed(owner.job, PoisonedJobError(message)))
        return verdict.again
