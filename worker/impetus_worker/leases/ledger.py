"""The jobs that are this worker's, how each ended, and the exchange with Redis by which they begin and end.

What running jobs say, how others ended and a claim for more go to Redis together, and the loop does not wait for the
answer. Knows nothing of batches and engines.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import RedisError

from impetus_producer.contract import BULK_QUEUES

from .claims import Answer, Claim
from .endings import ending_of, sentence
from .outcomes import Failed, Returned, Said, Started
from .relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from redis import Redis

    from .claims import ClaimedJob, Claims, Ending
    from .intake import Wanted
    from .outcomes import News, Outcome
    from .scripts import Call

_MAX_CLAIM_BYTES = 4_000_000
_MANY_ENDED = 64
_MAX_ENDINGS = 1024
_MAX_ENDINGS_BYTES = 250_000
"""Of one exchange, which takes some 10 ms a megabyte. The server is nobody else's meanwhile, and what ends next waits
until it is over.
"""
_log = logging.getLogger(__name__)


class Endings(Protocol):
    """Who ends runs by RQ's own means, as `rq_endings.RqEndings` does."""

    waiting: int

    def put(self, outcome: Outcome) -> None: ...


@dataclass(slots=True)
class _Exchange:
    """What was sent together: what jobs said, how others ended, and what is wanted."""

    relayed: bool = False
    finishing: bool = False
    """Whether it tells how jobs ended, or for how long the worker worked."""
    endings: list[tuple[Outcome, Ending]] = field(default_factory=list)
    worked_s: float = 0.0
    wanted: Wanted | None = None
    calls: list[Call[Any]] = field(default_factory=list)


class _Unsent:
    """How runs ended and is not sent yet, what somebody waits for first; None: by RQ's means."""

    def __init__(self) -> None:
        self._awaited: deque[tuple[Outcome, Ending | None]] = deque()
        self._others: deque[tuple[Outcome, Ending | None]] = deque()

    def __len__(self) -> int:
        return len(self._awaited) + len(self._others)

    def __iter__(self) -> Iterator[tuple[Outcome, Ending | None]]:
        yield from self._awaited
        yield from self._others

    @property
    def any_awaited(self) -> bool:
        return bool(self._awaited)

    def _lane(self, outcome: Outcome) -> deque[tuple[Outcome, Ending | None]]:
        return self._others if outcome.job.queue in BULK_QUEUES else self._awaited

    def append(self, outcome: Outcome, ending: Ending | None) -> None:
        self._lane(outcome).append((outcome, ending))

    def put_back(self, outcome: Outcome, ending: Ending | None) -> None:
        self._lane(outcome).appendleft((outcome, ending))

    def popleft(self) -> tuple[Outcome, Ending | None]:
        return (self._awaited or self._others).popleft()


class Ledger:
    """`send`: takes calls to the server; their answers come to `receive`, or their failure to `recall`, in the order in
    which they were sent. Two exchanges may be under way, so that the server has the next while this worker reads the
    answer to the last.

    `on_claim` is called with what was wanted and what came of it, `on_abandoned` with the ids of jobs for which nobody
    waits any more, both while an answer is received; `on_end` with the outcomes that are noted together. Times are the
    loop's, in seconds.
    """

    def __init__(
        self,
        claims: Claims,
        worker: str,
        rq_endings: Endings,
        send: Callable[[Sequence[Call[Any]]], None],
        on_claim: Callable[[Wanted, Claim], None],
        on_abandoned: Callable[[Sequence[str]], None],
        on_end: Callable[[Sequence[Outcome]], None] = lambda outcomes: None,
    ) -> None:
        self.held: dict[str, ClaimedJob] = {}
        """By id: all that this worker has to end."""
        self.open: dict[str, ClaimedJob] = {}
        """Those of them of which it is not known yet how they end."""
        self._under_way: deque[_Exchange] = deque()
        self._claims = claims
        self._rq_endings = rq_endings
        self._send = send
        self._on_claim = on_claim
        self._on_abandoned = on_abandoned
        self._on_end = on_end
        self._relay = Relay(worker)
        self._ended = _Unsent()
        self._returned: list[tuple[Outcome, Ending]] = []
        """Those that go back to the front of their queues, not yet sent."""
        self._unsure: set[str] = set()
        """Tokens of runs whose ending was sent before, and may have been written."""
        self._working_since: float | None = None
        self._worked_s = 0.0
        """For how long any job was open, and it has not told yet."""

    def has_news(self, now: float) -> bool:
        """Whether there is anything to send, besides a claim."""
        return bool(self._ended) or self._may_return or self._relay.has_news(now) or self._has_unsaid_work

    @property
    def _may_return(self) -> bool:
        """Whether jobs wait to go back, and no claim is under way that would bring later ones, to go before them."""
        return bool(self._returned) and not self.wanted

    @property
    def _has_unsaid_work(self) -> bool:
        """Whether there is time to tell of that no ending will."""
        return not self.open and (self._worked_s > 0 or self._working_since is not None)

    @property
    def is_empty(self) -> bool:
        return not self.held and not self._ended and not self._returned and not self._under_way

    @property
    def under_way(self) -> int:
        """How many exchanges await their answer."""
        return len(self._under_way)

    @property
    def wanted(self) -> int:
        """How many jobs are asked for, and not yet here."""
        return sum(exchange.wanted.jobs for exchange in self._under_way if exchange.wanted is not None)

    @property
    def is_relaying(self) -> bool:
        """Whether what jobs said is under way. Nothing goes out behind it: where the server forgot that script, it runs
        it last, and an ending would overtake the last words."""
        return any(exchange.relayed for exchange in self._under_way)

    @property
    def is_pressing(self) -> bool:
        """Whether enough ended to be worth an exchange of their own, or one for which somebody waits."""
        return len(self._ended) >= _MANY_ENDED or self._ended.any_awaited

    @property
    def rq_waiting(self) -> int:
        """How many runs wait to be ended by RQ's means."""
        return self._rq_endings.waiting

    def take(self, jobs: Iterable[ClaimedJob], now: float) -> None:
        """These are this worker's now."""
        for job in jobs:
            self.held[job.id] = self.open[job.id] = job
        if self.open and self._working_since is None:
            self._working_since = now

    def note(self, news: Iterable[News]) -> None:
        """Takes note of what there is to tell of jobs. One that ended is over but for the writing of it; until then its
        lease is kept.
        """
        outcomes: list[Outcome] = []
        for each in news:
            if isinstance(each, Said):
                self._relay.say(each)
            elif isinstance(each, Started):
                if each.awaited:
                    self._relay.watch(each.job)
            else:
                if isinstance(each, Failed):
                    _log.warning("job %s failed: %s", each.job.id, sentence(each.error))
                outcomes.append(each)
                ending = ending_of(each)  # written out now, while the server is busy
                if isinstance(each, Returned) and ending is not None:
                    self._returned.append((each, ending))
                else:
                    self._ended.append(each, ending)
                if self.open.get(each.job.id) is each.job:
                    del self.open[each.job.id]
        if outcomes:
            self._on_end(outcomes)

    def forget(self, job: ClaimedJob) -> None:
        """This run is over; another one of the same job may be held."""
        self._relay.forget(job)
        for jobs in (self.held, self.open):
            if jobs.get(job.id) is job:
                del jobs[job.id]

    def unfinished(self) -> list[ClaimedJob]:
        """The jobs of which it is not known how they end, or that RQ has not ended yet."""
        ended = {outcome.job.token for outcome, _ in (*self._ended, *self._returned)}
        return [job for job in self.held.values() if job.token not in ended]

    def send(self, wanted: Wanted | None, now: float) -> None:
        """Sends the news, and asks for what is wanted."""
        exchange = self._next_exchange(now)
        if wanted is not None:
            exchange.wanted = wanted
            exchange.calls.append(self._claims.claim(wanted.queues, wanted.jobs, _MAX_CLAIM_BYTES, wanted.portions))
        if exchange.calls:
            self._under_way.append(exchange)
            self._send(exchange.calls)

    def _next_exchange(self, now: float) -> _Exchange:
        """What jobs said and how others ended, as much as goes at once."""
        self._count_work(now)
        exchange, size = _Exchange(), 0
        # One at a time, so that pieces of a text come in their order also when they are sent again.
        if self._relay.has_news(now) and not self.is_relaying:
            exchange.relayed = True
            exchange.calls.append(self._relay.relaying(now))
        # What a run said is written only while it lasts, its last words too, which hold what it had made. So an ending
        # never overtakes them; one by RQ's means is another thread's, and waits until they are written.
        unsent, unsure, later = self._relay.unsent(), self._relay.unsure(), []
        while self._ended and len(exchange.endings) < _MAX_ENDINGS and size < _MAX_ENDINGS_BYTES:
            outcome, ending = self._ended.popleft()
            if outcome.job.token in (unsure if ending is None else unsent):
                later.append((outcome, ending))
                continue
            if ending is None:
                self._rq_endings.put(outcome)
                continue
            exchange.endings.append((outcome, ending))
            size += len(ending.stored) + len(ending.vectors or b"")
        for outcome, ending in reversed(later):
            self._ended.put_back(outcome, ending)
        if self._may_return:
            # Each goes to the front, so the last one first; tokens count as claims do.
            exchange.endings += sorted(self._returned, key=lambda each: each[0].job.token, reverse=True)
            self._returned = []
        if exchange.endings or self._has_unsaid_work:
            exchange.finishing = True
            exchange.worked_s, self._worked_s = self._worked_s, 0.0
            exchange.calls.append(self._claims.finish([ending for _, ending in exchange.endings], exchange.worked_s))
        return exchange

    def receive(self, answers: Sequence[Any]) -> bool:
        """Takes in the answer to what was sent first. False where the server refused a part, which is to be sent
        again.
        """
        exchange = self._under_way.popleft()
        left = iter(answers)
        relayed = next(left) if exchange.relayed else []
        ended = next(left) if exchange.finishing else []
        claim = next(left) if exchange.wanted is not None else None
        if isinstance(claim, Claim):
            # Whatever became of the rest: these jobs are this worker's.
            assert exchange.wanted is not None
            self._on_claim(exchange.wanted, claim)
        if isinstance(ended, RedisError):
            self._resend(exchange)
        else:
            self._conclude(exchange, ended)
        if isinstance(relayed, RedisError):
            self._relay.recall()
        elif exchange.relayed:
            self._relay.sent()
            if relayed:
                self._on_abandoned(relayed)
        return not any(isinstance(answer, RedisError) for answer in answers)

    def _conclude(self, exchange: _Exchange, answers: Sequence[Answer]) -> None:
        """What was to be written is written, or was another's to write."""
        for (outcome, _), answer in zip(exchange.endings, answers, strict=True):
            if answer is Answer.FOR_RQ:
                self._unsure.discard(outcome.job.token)
                self._rq_endings.put(outcome)
                continue
            if answer is Answer.NOT_OURS and outcome.job.token not in self._unsure:
                _log.warning("job %s: it is another's by now, so its result is not written", outcome.job.id)
            self._unsure.discard(outcome.job.token)
            self.forget(outcome.job)

    def recall(self) -> None:
        """It is unknown what the server has run of what was sent first: it is sent again, and fenced."""
        exchange = self._under_way.popleft()
        if exchange.relayed:
            self._relay.recall()
        self._unsure.update(outcome.job.token for outcome, _ in exchange.endings)
        self._resend(exchange)

    def _resend(self, exchange: _Exchange) -> None:
        for outcome, ending in reversed(exchange.endings):
            if isinstance(outcome, Returned):
                self._returned.append((outcome, ending))
            else:
                self._ended.put_back(outcome, ending)
        self._worked_s += exchange.worked_s

    def recall_all(self) -> None:
        """No answer is awaited any more."""
        while self._under_way:
            self.recall()

    def settle(self, connection: Redis, now: float) -> None:
        """Writes all that there is to write and waits for it; for the farewell. What only RQ could end goes back to
        its queue. Raises `RedisError`.
        """
        ended, self._ended = self._ended, _Unsent()
        for outcome, ending in ended:
            self._ended.append(outcome, ending or ending_of(Returned(outcome.job)))
        while self.has_news(now):
            exchange = self._next_exchange(now)
            if not exchange.calls:
                return
            self._under_way.append(exchange)
            try:
                answers = [call.run(connection) for call in exchange.calls]
            except BaseException:
                self.recall()
                raise
            self.receive(answers)
            # Nobody is there any more to end what turned out to be RQ's to end.
            self.note(Returned(job) for job in self.unfinished())

    def _count_work(self, now: float) -> None:
        if self._working_since is not None:
            self._worked_s += now - self._working_since
            self._working_since = now if self.open else None
