"""The jobs that are this worker's, how each ended, and the exchange with Redis by which they begin and end.

What running jobs say, how others ended and a claim for more go to Redis together, and the loop does not wait for the
answer. Knows nothing of batches and engines.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import RedisError

from .claims import Answer, Claim
from .endings import ending_of, sentence
from .outcomes import Failed, Returned, Said, Started
from .relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from redis import Redis

    from .claims import ClaimedJob, Claims, Ending
    from .intake import Wanted
    from .outcomes import News, Outcome
    from .scripts import Call

_MAX_CLAIM_BYTES = 32_000_000
_MAX_ENDINGS = 1024
_MAX_ENDINGS_BYTES = 32_000_000
"""Of one exchange. A server takes no argument over 512 MB, and is nobody else's while it writes."""
_log = logging.getLogger(__name__)


class Endings(Protocol):
    """Who ends runs by RQ's own means, as `rq_endings.RqEndings` does."""

    waiting: int

    def put(self, outcome: Outcome) -> None: ...


class Ledger:
    """`send`: takes calls to the server; their answers come to `receive`, or their failure to `recall`.

    Both are called while an answer is received, `on_claim` with what was wanted and what came of it, `on_abandoned`
    with the ids of jobs for which nobody waits any more. Times are the loop's, in seconds.
    """

    def __init__(
        self,
        claims: Claims,
        worker: str,
        rq_endings: Endings,
        send: Callable[[Sequence[Call[Any]]], None],
        on_claim: Callable[[Wanted, Claim], None],
        on_abandoned: Callable[[Sequence[str]], None],
    ) -> None:
        self.held: dict[str, ClaimedJob] = {}
        """By id: all that this worker has to end."""
        self.open: dict[str, ClaimedJob] = {}
        """Those of them of which it is not known yet how they end."""
        self.under_way = False
        """Whether an answer is awaited."""
        self._claims = claims
        self._rq_endings = rq_endings
        self._send = send
        self._on_claim = on_claim
        self._on_abandoned = on_abandoned
        self._relay = Relay(worker)
        self._ended: deque[Outcome] = deque()
        """How the others ended, not yet sent."""
        self._sent: list[tuple[Outcome, Ending]] = []
        """How those ended that the exchange under way tells of."""
        self._unsure: set[str] = set()
        """Tokens of runs whose ending was sent before, and may have been written."""
        self._relayed = False
        """Whether it began with what jobs say."""
        self._wanted: Wanted | None = None
        """What it asks for."""
        self._finishing = False
        """Whether it tells how jobs ended."""
        self._working_since: float | None = None
        self._worked_s = 0.0
        """For how long it held any job, and has not told yet."""
        self._worked_sent_s = 0.0

    def has_news(self, now: float) -> bool:
        """Whether there is anything to send, besides a claim."""
        return bool(self._ended) or self._relay.has_news(now) or self._has_unsaid_work

    @property
    def _has_unsaid_work(self) -> bool:
        """Whether there is time to tell of that no ending will."""
        return not self.held and (self._worked_s > 0 or self._working_since is not None)

    @property
    def is_empty(self) -> bool:
        return not self.held and not self._ended and not self.under_way

    @property
    def rq_waiting(self) -> int:
        """How many runs wait to be ended by RQ's means."""
        return self._rq_endings.waiting

    def take(self, jobs: Iterable[ClaimedJob], now: float) -> None:
        """These are this worker's now."""
        for job in jobs:
            self.held[job.id] = self.open[job.id] = job
        if self.held and self._working_since is None:
            self._working_since = now

    def note(self, news: Iterable[News]) -> None:
        """Takes note of what there is to tell of jobs. One that ended is over but for the writing of it; until then its
        lease is kept.
        """
        for each in news:
            if isinstance(each, Said):
                self._relay.say(each)
            elif isinstance(each, Started):
                if each.awaited:
                    self._relay.watch(each.job)
            else:
                if isinstance(each, Failed):
                    _log.warning("job %s failed: %s", each.job.id, sentence(each.error))
                self._ended.append(each)
                if self.open.get(each.job.id) is each.job:
                    del self.open[each.job.id]

    def forget(self, job: ClaimedJob) -> None:
        """This run is over; another one of the same job may be held."""
        self._relay.forget(job)
        for jobs in (self.held, self.open):
            if jobs.get(job.id) is job:
                del jobs[job.id]

    def unfinished(self) -> list[ClaimedJob]:
        """The jobs of which it is not known how they end, or that RQ has not ended yet."""
        ended = {outcome.job.token for outcome in self._ended}
        return [job for job in self.held.values() if job.token not in ended]

    def send(self, wanted: Wanted | None, now: float) -> None:
        """Sends the news, and asks for what is wanted; nothing else may be under way."""
        calls = self._calls(now)
        if wanted is not None:
            calls.append(self._claims.claim(wanted.queues, wanted.jobs, _MAX_CLAIM_BYTES))
        self._wanted = wanted
        if calls:
            self.under_way = True
            self._send(calls)

    def _calls(self, now: float) -> list[Call[Any]]:
        """What jobs said and how others ended, as much as goes at once."""
        self._count_work(now)
        calls: list[Call[Any]] = []
        self._relayed = self._relay.has_news(now)
        if self._relayed:
            calls.append(self._relay.relaying(now))
        self._finishing, size = False, 0
        while self._ended and len(self._sent) < _MAX_ENDINGS and size < _MAX_ENDINGS_BYTES:
            outcome = self._ended.popleft()
            ending = ending_of(outcome)
            if ending is None:
                self._rq_endings.put(outcome)
                continue
            self._sent.append((outcome, ending))
            size += len(ending.payload) + len(ending.vectors or b"")
        if self._sent or self._has_unsaid_work:
            self._finishing = True
            self._worked_sent_s, self._worked_s = self._worked_s, 0.0
            calls.append(self._claims.finish([ending for _, ending in self._sent], self._worked_sent_s))
        return calls

    def receive(self, answers: Sequence[Any]) -> bool:
        """Takes in the answer to what was sent. False where the server refused a part, which is to be sent again."""
        self.under_way = False
        left = iter(answers)
        relayed = next(left) if self._relayed else []
        ended = next(left) if self._finishing else []
        claim = next(left) if self._wanted is not None else None
        if isinstance(claim, Claim):
            # Whatever became of the rest: these jobs are this worker's.
            assert self._wanted is not None
            self._on_claim(self._wanted, claim)
        if isinstance(ended, RedisError):
            self._resend()
        else:
            self._conclude(ended)
        if isinstance(relayed, RedisError):
            self._relay.recall()
        else:
            self._relay.sent()
            if relayed:
                self._on_abandoned(relayed)
        return not any(isinstance(answer, RedisError) for answer in answers)

    def _conclude(self, answers: Sequence[Answer]) -> None:
        """What was to be written is written, or was another's to write."""
        for (outcome, _), answer in zip(self._sent, answers, strict=True):
            if answer is Answer.FOR_RQ:
                self._rq_endings.put(outcome)
                continue
            if answer is Answer.NOT_OURS and outcome.job.token not in self._unsure:
                _log.warning("job %s: it is another's by now, so its result is not written", outcome.job.id)
            self._unsure.discard(outcome.job.token)
            self.forget(outcome.job)
        self._sent = []

    def recall(self) -> None:
        """It is unknown what the server has run of what was sent: it is sent again, and fenced."""
        self.under_way = False
        self._relay.recall()
        self._unsure.update(outcome.job.token for outcome, _ in self._sent)
        self._resend()

    def _resend(self) -> None:
        self._ended.extendleft(outcome for outcome, _ in reversed(self._sent))
        self._sent = []
        self._worked_s += self._worked_sent_s
        self._worked_sent_s = 0.0

    def settle(self, connection: Redis, now: float) -> None:
        """Writes all that there is to write and waits for it; for the farewell. What only RQ could end goes back to
        its queue. Raises `RedisError`.
        """
        self._ended = deque(
            outcome if ending_of(outcome) is not None else Returned(outcome.job) for outcome in self._ended
        )
        while self.has_news(now):
            calls = self._calls(now)
            if not calls:
                return
            self._wanted = None
            try:
                answers = [call.run(connection) for call in calls]
            except BaseException:
                self.recall()
                raise
            self.receive(answers)

    def _count_work(self, now: float) -> None:
        if self._working_since is not None:
            self._worked_s += now - self._working_since
            self._working_since = now if self.held else None
