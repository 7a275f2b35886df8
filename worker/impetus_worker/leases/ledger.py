"""The jobs that are this worker's, how each ended, and the talk with Redis by which they begin and end.

What running jobs say, how others ended and a claim for more go to Redis together, and the loop does not wait for the
answer. Knows nothing of batches and engines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from .claims import Claim
from .exchange import Exchange
from .outcomes import Said, Started
from .relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from redis import Redis

    from .claims import Call, ClaimedJob, Claims, Ended
    from .endings import Lifecycle, Settlement
    from .intake import Wanted
    from .outcomes import News, Outcome

_MAX_CLAIM_BYTES = 32_000_000


class Ledger:
    """Both are called while an answer is received, `on_claim` with what was wanted and what came of it, `on_abandoned`
    with the ids of jobs for which nobody waits any more.
    """

    def __init__(
        self,
        connection: Redis,
        claims: Claims,
        lifecycle: Lifecycle,
        on_claim: Callable[[Wanted, Claim], None],
        on_abandoned: Callable[[Sequence[str]], None],
    ) -> None:
        self.exchange = Exchange(connection)
        """To be waited for while it is `pending`."""
        self.held: dict[str, ClaimedJob] = {}
        """By id: all that this worker holds a lease on."""
        self.open: dict[str, ClaimedJob] = {}
        """Those of them that have not ended yet."""
        self._claims = claims
        self._lifecycle = lifecycle
        self._on_claim = on_claim
        self._on_abandoned = on_abandoned
        self._relay = Relay(connection)
        self._relayed = False
        """Whether the exchange under way began with what jobs say."""
        self._ended: list[Outcome] = []
        """How the others ended, not yet sent."""
        self._settlement: Settlement | None = None
        """How those ended that the exchange under way tells of."""
        self._wanted: Wanted | None = None
        """What it asks for."""

    def has_news(self, now: float) -> bool:
        """Whether there is anything to send, besides a claim."""
        return bool(self._ended) or self._relay.has_news(now)

    @property
    def is_empty(self) -> bool:
        return not self.held and not self._ended and not self.exchange.pending

    def take(self, jobs: Iterable[ClaimedJob]) -> None:
        """These are this worker's now."""
        for job in jobs:
            self.held[job.id] = self.open[job.id] = job

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
                self._ended.append(each)
                if self.open.get(each.job.id) is each.job:
                    del self.open[each.job.id]

    def forget(self, job: ClaimedJob) -> None:
        """This run of the job is over; another one of the same job may be held."""
        self._relay.forget(job)
        for jobs in (self.held, self.open):
            if jobs.get(job.id) is job:
                del jobs[job.id]

    def send(self, wanted: Wanted | None, now: float) -> bool:
        """Sends the news, and asks for what is wanted; nothing else may be under way.

        Says whether any job was ended by RQ's own means. Raises `RedisError`: `recall()` then.
        """
        self._settlement, self._ended = self._lifecycle.prepare(self._ended), []
        calls: list[Call[Any]] = []
        self._relayed = self._relay.has_news(now)
        if self._relayed:
            calls.append(self._relay.relaying(now))
        if self._settlement.by_run:
            calls.append(self._claims.finishing(self._settlement.endings))
        if wanted is not None:
            calls.append(self._claims.claiming(wanted.queues, wanted.jobs, _MAX_CLAIM_BYTES, idle=not self.open))
        self._wanted = wanted
        if not calls:
            return self._conclude([])
        self.exchange.send(calls)
        return False

    def receive(self) -> bool:
        """Takes in the answer to what was sent; waits for it if it is not there. Otherwise like `send`."""
        assert self._settlement is not None
        answers = iter(self.exchange.receive())
        relayed = next(answers) if self._relayed else []
        ended = next(answers) if self._settlement.by_run else []
        claim = next(answers) if self._wanted is not None else None
        if isinstance(claim, Claim):
            # Whatever became of the rest: these jobs are this worker's.
            assert self._wanted is not None
            self._on_claim(self._wanted, claim)
        for answer in (ended, claim):
            if isinstance(answer, RedisError):
                raise answer
        by_rq = self._conclude(ended)
        if isinstance(relayed, RedisError):
            raise relayed
        self._relay.sent()
        if relayed:
            self._on_abandoned(relayed)
        return by_rq

    def _conclude(self, ended: Sequence[Ended]) -> bool:
        """What was to be written is written, or was another's to write."""
        assert self._settlement is not None
        by_rq = self._lifecycle.conclude(self._settlement, ended)
        for outcome in self._settlement.outcomes:
            self.forget(outcome.job)
        self._settlement = None
        return by_rq

    def recall(self) -> None:
        """It is unknown what the server has run of what was sent: it is sent again, and fenced."""
        self.exchange.close()
        self._relay.recall()
        if self._settlement is not None:
            self._ended = [*self._settlement.outcomes, *self._ended]
            self._settlement = None

    def settle(self, now: float) -> None:
        """Writes all that there is to write, and waits for it."""
        try:
            if self._relay.has_news(now):
                self._relay.relaying(now).run()
                self._relay.sent()
        finally:  # a server without room for what jobs said may have some for how they ended
            if self._ended:
                self._lifecycle.settle(self._ended)
