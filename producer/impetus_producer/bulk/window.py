"""The window of a run over documents at one server: the jobs that are in Redis now, and who waits for them.

Nothing that was read is lost, whatever becomes of the server; what the server lost is sent again. Documents that ask
for the same are asked for once.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..documents import Document, FailedDocument
from ..enqueueing import jobs
from ..enqueueing.texts import CHARACTERS_PER_JOB
from ..errors import ImpetusError, JobFailedError, ServerDataError, ServerError, ServerFullError, UnreadableResultError
from ..servers.answers import Trouble, known_answers, trouble
from ..servers.connections import hurried
from ..servers.troubles import server_errors
from ..talks.results import as_text
from ..talks.steps import directly
from .works import OutcomeT, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from redis import Redis

    from ..client import Producer
    from .kept.journal import Keeper
    from .kept.store import Answer
    from .slots import Slot

_BLOCK_MS = 500
_MOST_LOSSES = 5
"""So often is a job sent again that Redis lost. A server that evicts loses them for ever."""
_DISCARD_FROM = 8

_AnswerT = TypeVar("_AnswerT")


@dataclass(slots=True)
class _Job:
    """One job in Redis: the keys of what it carries, and how far its results were read."""

    keys: Sequence[bytes]
    seen: Any = "0-0"
    losses: int = 0


@dataclass(slots=True, eq=False)
class Window(Generic[OutcomeT]):
    """The documents that wait for a server's answers, and the jobs that are there for them.

    `waits`: for a server that is away, as long as patience lasts. Else it is asked once, and `go_on` is to be called
    when it is back.
    """

    producer: Producer
    work: Work[OutcomeT]
    keeper: Keeper
    texts_per_job: int
    while_away: Callable[[], None] | None
    waits: bool = True
    waiting_for: dict[bytes, list[Slot[OutcomeT]]] = field(default_factory=dict)
    """Who waits for what is being computed. Nobody, as long as nobody asked for what an earlier run had sent."""
    sent: dict[str, _Job] = field(default_factory=dict)
    unsent: list[_Job] = field(default_factory=list)
    """For which the server had no room so far."""
    full_since: float | None = None
    """By the monotonic clock, as long as it takes nothing and no result comes."""
    ended: list[str] = field(default_factory=list)
    """To be deleted from Redis: nothing is there of them that is not kept."""
    read: list[str] = field(default_factory=list)
    """Jobs whose `answers`, `failures` and `usage` are not kept so far."""
    answers: list[tuple[bytes, Answer]] = field(default_factory=list)
    failures: list[tuple[bytes, str]] = field(default_factory=list)
    usage: list[Any] = field(default_factory=list)
    succeeded: bool = False

    def _ask(
        self, question: Callable[[], _AnswerT], never_for: type[ServerError] | tuple[type[ServerError], ...] = ()
    ) -> _AnswerT:
        return self.producer.patience.ask(
            self.producer.connection, question, never_for=never_for, while_away=self.while_away, once=not self.waits
        )

    def take_up(self) -> None:
        """Goes on with the jobs that an earlier run left in Redis."""
        for job_id, keys in self.keeper.unfinished().items():
            if self.producer.of(job_id) is not self.producer:
                continue
            self.sent[job_id] = _Job(keys)
            for key in keys:
                self.waiting_for.setdefault(key, [])
        if self.sent:
            self._look_for_the_lost()

    def admit(self, slots: Iterable[Slot[OutcomeT]]) -> None:
        """Enqueues jobs for what has to be computed, in one round trip; settles at once what was."""
        asked: dict[bytes, list[Slot[OutcomeT]]] = {}
        for slot in slots:
            asked.setdefault(slot.key, []).append(slot)
        found = self.keeper.find([key for key in asked if key not in self.waiting_for])
        wanted = []
        for key, together in asked.items():
            if key not in self.waiting_for and key not in found:
                wanted.append(key)
            self.waiting_for.setdefault(key, []).extend(together)
            if key in found:
                self.keeper.taken += len(together)
                self._settle(key, found[key])
        self.unsent += self._jobs_of(wanted)
        self._enqueue()

    def hand_over(self) -> list[Slot[OutcomeT]]:
        """Whoever still waits, to wait elsewhere. What comes of their jobs is kept all the same."""
        slots = [slot for waiting in self.waiting_for.values() for slot in waiting]
        self.unsent = []
        self.waiting_for = {key: [] for job in self.sent.values() for key in job.keys}
        return slots

    def go_on(self) -> None:
        """Once the server is back: sends again what it lost, and withdraws what is waited for elsewhere."""
        self._look_for_the_lost()
        self._withdraw([job_id for job_id, job in self.sent.items() if not any(map(self.waiting_for.get, job.keys))])

    def _jobs_of(self, keys: Sequence[bytes]) -> Iterator[_Job]:
        part: list[bytes] = []
        characters = size = 0
        for key in keys:
            slot = self.waiting_for[key][0]
            assert isinstance(slot.document, Document)
            length, takes = slot.characters, self.work.size(slot.document)
            full = len(part) >= self.texts_per_job or size + takes > self.work.most_per_job
            if part and (full or characters + length > CHARACTERS_PER_JOB):
                yield _Job(part)
                part, characters, size = [], 0, 0
            part.append(key)
            characters, size = characters + length, size + takes
        if part:
            yield _Job(part)

    def _settle(self, key: bytes, found: Answer | str, *, retryable: bool = False) -> None:
        # A run that was killed may have left two jobs that carry the same.
        for slot in self.waiting_for.pop(key, ()):
            document = slot.document
            assert isinstance(document, Document)
            if isinstance(found, str):
                slot.outcome = FailedDocument(document.id, found, retryable=retryable)
            else:
                slot.outcome = self.work.outcome(document, found)

    def _enqueue(self) -> None:
        if not self.unsent:
            return
        # A server that is full gets room by our reading what it has made for us, and else is waited for.
        others = bool(self.sent)
        by_id = {self.producer.new_id(): job for job in self.unsent}
        payloads = {
            job_id: self.work.payload([self.waiting_for[key][0].document for key in job.keys])  # type: ignore[misc]
            for job_id, job in by_id.items()
        }
        # Noted first: who presses Ctrl-C meanwhile leaves no job behind, and who is killed finds it again.
        self.sent.update(by_id)
        self.unsent = []
        self.keeper.sent({job_id: job.keys for job_id, job in by_id.items()})
        question = jobs.enqueueing(self.work.queue, self.work.function, payloads, self.producer.options)
        enqueue = partial(question.put_to, self.producer.connection)
        try:
            self._ask(enqueue, never_for=ServerFullError if others else ())
        except ServerFullError:
            self.full_since = self.full_since or time.monotonic()
            self.unsent += [self.sent.pop(job_id) for job_id in by_id]
            self.keeper.ended(by_id)
            if not others or time.monotonic() - self.full_since > self.producer.patience.limit_s:
                raise
        else:
            self.full_since = None

    def collect(self, *, wait: bool = True) -> bool:
        """Takes all results there are, in one round trip; where there is none, waits for some. False when none came."""
        self._enqueue()
        if not self.sent:
            return False
        streams: Any = {jobs.results_key(job_id): job.seen for job_id, job in self.sent.items()}
        try:
            answer: Any = self._ask(lambda: self.producer.connection.xread(streams, block=_BLOCK_MS if wait else None))
        except ServerDataError as error:
            self._end_overwritten(error)
            return True
        if not answer:
            if wait:
                self._look_for_the_lost()
            return False
        self.full_since = None
        prefix = len(jobs.results_key(""))
        for key, entries in answer:
            job_id = as_text(key)[prefix:]
            for entry_id, fields in entries:
                try:
                    outcome = jobs.decode_outcome(job_id, fields)
                except UnreadableResultError as error:
                    self._end_badly(job_id, error)
                    break
                if outcome.final:
                    self._end(job_id, outcome)
                    break
                self.sent[job_id].seen = entry_id
        self._keep()
        self._enqueue()
        # A few at a time: what is read but not yet deleted is a fraction of the window.
        if len(self.ended) >= _DISCARD_FROM:
            self._discard_ended()
        return True

    def _keep(self) -> None:
        """Has what was read outlive this process, before it goes from Redis."""
        usage: dict[str, int] = {}
        for each in self.usage:
            for name, count in each.items():
                usage[name] = usage.get(name, 0) + count
        if self.answers or self.failures or usage:
            self.keeper.keep(self.answers, self.failures, usage)
        self.ended += self.read
        self.read, self.answers, self.failures, self.usage = [], [], [], []

    def _end_badly(self, job_id: str, error: ImpetusError) -> None:
        self.read.append(job_id)
        self._failed(self.sent.pop(job_id), error)

    def _end_overwritten(self, error: ServerDataError) -> None:
        """Ends the jobs in whose results' place something else lies, for which the others cannot be read together."""
        waiting = list(self.sent)
        wrong = self._ask(partial(self._of_another_type, waiting))
        overwritten = list(compress(waiting, wrong))
        if not overwritten:
            raise error
        for job_id in overwritten:
            self._end_badly(job_id, UnreadableResultError(job_id, str(error)))
        self._keep()
        self._discard_ended()
        self._enqueue()

    def _of_another_type(self, job_ids: Sequence[str]) -> list[bool]:
        """Whether what lies in the place of a job's results is no stream."""
        with self.producer.connection.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.xread({jobs.results_key(job_id): "$"})
            answers = pipeline.execute(raise_on_error=False)
        wrong = [isinstance(answer, Exception) for answer in answers]
        for answer in answers:
            if isinstance(answer, Exception) and trouble(answer) is not Trouble.DATA:
                raise answer
        return wrong

    def _end(self, job_id: str, outcome: jobs.Outcome) -> None:
        """Settles the documents of a job that ended, or has them tried again one by one."""
        stopped = outcome.error is not None and self._was_stopped(job_id)
        job = self.sent.pop(job_id)
        self.read.append(job_id)
        if outcome.error is not None:
            if stopped:
                self._give_up(job, "its job was stopped while it ran")
            else:
                self._failed(job, outcome.error)
            return
        try:
            result = self.work.read(job_id, outcome.return_value)
        except ImpetusError as error:
            self._failed(job, error)
            return
        if len(result.answers) != len(job.keys):
            counts = f"{len(result.answers)} results for {len(job.keys)} documents"
            self._failed(job, ImpetusError(f"the worker sent {counts}"))
            return
        self.succeeded = True
        self.usage.append(result.usage)
        for key, answer in zip(job.keys, result.answers, strict=True):
            if not isinstance(answer, str):
                self.answers.append((key, answer))
            self._settle(key, answer)

    def _failed(self, job: _Job, error: ImpetusError) -> None:
        field_name, colon, _ = str(error).partition(":")
        if isinstance(error, JobFailedError) and colon and field_name in self.work.shared_fields and not self.succeeded:
            # It is the options that are refused, and every job has the same ones.
            raise error
        if len(job.keys) > 1 or not self.waiting_for.get(job.keys[0]):
            self._again([_Job([key]) for key in job.keys])
            return
        reason = str(error).removeprefix("input: ").replace("item 0 ", "the text ", 1)
        self.failures.append((job.keys[0], reason))
        self._settle(job.keys[0], reason)

    def _again(self, again: Iterable[_Job]) -> None:
        """Has these sent once more, but for what nobody here has asked for so far."""
        for job in again:
            wanted = [key for key in job.keys if self.waiting_for.get(key)]
            self._nobody_waits_for(job, but=wanted)
            if wanted:
                self.unsent.append(_Job(wanted, losses=job.losses))

    def _nobody_waits_for(self, job: _Job, but: Sequence[bytes] = ()) -> None:
        for key in job.keys:
            if key not in but:
                self.waiting_for.pop(key, None)

    def _was_stopped(self, job_id: str) -> bool:
        def status() -> Any:
            with self.producer.connection.pipeline(transaction=False) as pipeline:
                pipeline.hget(jobs.job_key(job_id), "status")
                return known_answers(pipeline.execute(raise_on_error=False))[0]

        return self._ask(status) in (b"stopped", "stopped")

    def _give_up(self, job: _Job, reason: str) -> None:
        """What may well succeed another time."""
        for key in job.keys:
            self._settle(key, reason, retryable=True)

    def _look_for_the_lost(self) -> None:
        """Ends what will never have a result: jobs cancelled by others, or that Redis no longer knows."""
        waiting = list(self.sent)
        answers = self._ask(partial(self._statuses, waiting))
        for job_id, status, has_result in zip(waiting, answers[::2], answers[1::2], strict=True):
            if has_result:
                continue
            word = None if status is None else as_text(status)
            if word in ("canceled", "stopped"):
                self._give_up(self.sent.pop(job_id), "its job was cancelled")
                self.ended.append(job_id)
            elif word in (None, "finished", "failed"):
                self._lost(self.sent.pop(job_id))
                self.ended.append(job_id)
        self._enqueue()

    def _statuses(self, job_ids: Sequence[str]) -> list[Any]:
        with self.producer.connection.pipeline(transaction=True) as pipeline:
            for job_id in job_ids:
                pipeline.hget(jobs.job_key(job_id), "status")
                pipeline.exists(jobs.results_key(job_id))
            return known_answers(pipeline.execute(raise_on_error=False))

    def _lost(self, job: _Job) -> None:
        job.losses += 1
        if job.losses <= _MOST_LOSSES:
            self._again([job])
        else:
            self._give_up(job, f"its job was lost from Redis {job.losses} times")

    def _discard_ended(self) -> None:
        self._ask(partial(self._discard, self.producer.connection))
        self.keeper.ended(self.ended)
        self.ended = []

    def _discard(self, connection: Redis) -> None:
        directly(connection, jobs.discarding(self.ended, self.work.queue))

    def forget(self) -> None:
        """Leaves the jobs to their time to live, or to a run that goes on with them."""
        self.sent.clear()
        self.ended.clear()

    def close(self) -> None:
        """Withdraws the jobs that still wait, and deletes what ended. Jobs that run end by themselves."""
        # What ended the run must not be hidden by a server that goes now.
        with suppress(ServerError), server_errors(), hurried(self.producer.connection) as connection:
            self._take_off(list(self.sent), connection)
            if self.ended:
                self._discard(connection)
                self.keeper.ended(self.ended)

    def _withdraw(self, job_ids: Sequence[str]) -> None:
        """Of those that nobody waits for here. Results of the others still come."""
        self._ask(partial(self._take_off, job_ids, self.producer.connection))
        for job_id in self.ended:
            if job := self.sent.pop(job_id, None):
                self._nobody_waits_for(job)
        if self.ended:
            self._discard_ended()

    def _take_off(self, job_ids: Sequence[str], connection: Redis) -> None:
        """Takes those that still wait off the queue."""
        if job_ids:
            self.ended += jobs.withdrawing(job_ids, self.work.queue).put_to(connection)
