"""Fleets of unequal Macs by a clock of their own: how long one backlog takes them, beside the best that could be.

Everything but time, devices and threads is the worker's own: `EmbeddingBatcher`, `Intake`, `shares`, and the scripts by
which jobs are claimed and ended, on a real server. A device is busy for as long as its line says, a + b * tokens of the
rows in which it lays a batch (as the backends for a CPU do: several texts in one, where that is less), and the clock
then stands at the next thing that happens. So 64 Macs need no 64 cores. The chips are inventions that differ as much as
Macs may: no figure here is one of a Mac.

Compared are the worker's rule; the rule before it (a Neural Engine first and the others standing by, each claiming
twelve seconds of its own work); and the best static assignment: who knows all lines and all texts beforehand gives each
job to the Mac that would end it soonest, and each Mac then runs its list alone.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from functools import cache
from itertools import count, cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from scripts.corpus import docstrings

from impetus_backends.embedding.devices.sharing import rows_of
from impetus_backends.embedding.folder.config import EmbeddingConfig, read_config
from impetus_backends.engine_config import EngineConfig
from impetus_backends.models import DEFAULT_EMBEDDING_MODEL, resolve
from impetus_backends.protocol import Embedded, EmbeddingWork
from impetus_backends.simulated import SimulatedTextEncoder, open_simulated_embedding
from impetus_producer import Producer
from impetus_producer.contract import ROLE_QUEUES, MeasuredCost, WorkerRecord
from impetus_worker.allowed import NOTHING
from impetus_worker.batches.embedding import EmbeddingBatcher
from impetus_worker.batches.planning.cost import Costs
from impetus_worker.batches.reading.rows import EmbeddingRequests
from impetus_worker.batches.results import EmbeddingResults
from impetus_worker.fleet.routing import queues_for
from impetus_worker.fleet.shares import shares
from impetus_worker.leases.claims import Claim, Claims, Left
from impetus_worker.leases.endings import ending_of
from impetus_worker.leases.intake import Intake, Wanted

from ..means.report import Report, progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis

    from impetus_worker.leases.claims import ClaimedJob

_QUEUES = ROLE_QUEUES["embedding"]
_TEXTS_A_JOB = 64
_ROUND_TRIP_S = 0.002
_LEASE_S = 100_000
_CLAIM_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class Chip:
    """A device by its line."""

    name: str
    call_ms: float
    token_us: float
    batch_tokens: int = 4096
    neural_engine: bool = False

    @property
    def cost(self) -> MeasuredCost:
        return MeasuredCost(call_s=self.call_ms / 1e3, token_s=self.token_us / 1e6, batch_tokens=self.batch_tokens)


CHIPS = (
    Chip("ane", 2, 100, neural_engine=True),
    Chip("large gpu", 12, 18),
    Chip("cpu", 1, 500, batch_tokens=1024),
    Chip("new ane", 1, 50, neural_engine=True),
    Chip("small gpu", 15, 80),
)
"""Of a fleet the first has the first, and so on in turn: the fastest does 28 times what the slowest does."""


class Clock:
    """What happens, in the order of its time; at equal times in an order drawn by the seed."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self._order, self._random = count(), random.Random(seed)
        self._due: list[tuple[float, float, int, Callable[[], None]]] = []

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (max(when, self.now), self._random.random(), next(self._order), what))

    def run(self) -> None:
        while self._due:
            self.now, _, _, what = heapq.heappop(self._due)
            what()


class Jobs:
    """Where one Mac's jobs come from: the server, or a list of its own."""

    def __init__(self, name: str, connection: Redis, own: Sequence[ClaimedJob] | None = None) -> None:
        self._claims, self._connection = Claims(name, _LEASE_S), connection
        self._own = None if own is None else list(own)

    def claim(self, wanted: Wanted) -> Claim:
        if self._own is None:
            return self._claims.claim(wanted.queues, wanted.jobs, _CLAIM_BYTES, wanted.portions).run(self._connection)
        bulk = _QUEUES[1]
        count = wanted.jobs if bulk in wanted.queues else 0
        taken, self._own = self._own[:count], self._own[count:]
        return Claim(False, taken, tuple(Left(len(self._own) if name == bulk else 0) for name in wanted.queues))

    def end(self, outcomes: Sequence[Any]) -> None:
        endings = [ending for each in outcomes if (ending := ending_of(each)) is not None]
        if self._own is None and endings:
            self._claims.finish(endings).run(self._connection)


class Mac:
    """A worker's loop by the clock: it claims, batches, runs and ends, and is woken when there is something to do."""

    def __init__(self, name: str, chip: Chip, jobs: Jobs, clock: Clock) -> None:
        self.chip, self.ended_at, self.texts = chip, 0.0, 0
        self.latencies: list[float] = []
        self._jobs, self._clock = jobs, clock
        self.engine = open_simulated_embedding(EngineConfig(kind="embedding"), dimensions=4).info
        self.batcher = EmbeddingBatcher(
            EmbeddingRequests(self.engine, [SimulatedTextEncoder()], NOTHING),
            EmbeddingResults(name),
            max_batch_texts=256,
            max_batch_tokens=chip.batch_tokens,
            max_wait_s=0.005,
            clock=lambda: 0.0,  # it reads all at once
            costs=Costs(chip.batch_tokens, self.engine.model, [(n, chip.cost.seconds(n)) for n in (64, 4096)]),
        )
        self.listening: set[str] = set()
        self.intake = Intake({queue: lambda queue=queue: self.listening.add(queue) for queue in _QUEUES})  # type: ignore[misc]
        self._waiting: list[EmbeddingWork] = []
        self._runs = self._asks = False
        self._wakes_at = -1.0

    @property
    def record(self) -> WorkerRecord:
        return WorkerRecord(
            name=self.chip.name, role="embedding", model=self.engine.model, backend="simulated", device=self.chip.name,
            neural_engine=self.chip.neural_engine, cost=self.batcher.cost,
        )  # fmt: skip

    def ring(self, queue: str) -> None:
        if queue in self.listening:
            self.listening.discard(queue)
            self.intake.hear(queue)
            self.turn()

    def turn(self) -> None:
        now = self._clock.now
        while self.batcher.unread():
            self.batcher.read(now)
        while (work := self.batcher.next_work(now)) is not None:
            assert isinstance(work, EmbeddingWork)
            self._waiting.append(work)
        self._start()
        if not self._asks and (wanted := self.intake.wanted(self.batcher.room(), now)) is not None:
            self._asks = True
            claim = self._jobs.claim(wanted)
            self._clock.at(now + _ROUND_TRIP_S, lambda: self._answered(wanted, claim))
        for wake in (self.batcher.wakes_at(), self.intake.wakes_at(now)):
            if wake is not None and wake > now and not now < self._wakes_at <= wake:
                self._wakes_at = wake
                self._clock.at(wake, self.turn)

    def _answered(self, wanted: Wanted, claim: Claim) -> None:
        self._asks = False
        self.intake.learn(wanted, claim, self._clock.now)
        self.batcher.add(claim.jobs)
        self.turn()

    def _start(self) -> None:
        if self._waiting and not self._runs:
            self._runs = True
            work = next((each for each in self._waiting if each.urgent), self._waiting[0])
            self._waiting.remove(work)
            took_s = self.chip.cost.seconds(_laid_tokens([len(row) for row in work.rows]))
            self._clock.at(self._clock.now + took_s, lambda: self._ran(work, took_s))

    def _ran(self, work: EmbeddingWork, took_s: float) -> None:
        self._runs = False
        outcomes = self.batcher.absorb(
            Embedded(work.id, np.full((len(work.rows), 4), 0.5, np.float32), took_s), self._clock.now
        )
        self._jobs.end(outcomes)
        self.ended_at, self.texts = self._clock.now, self.texts + len(work.rows)
        self.turn()


@cache
def _model() -> EmbeddingConfig:
    return read_config(resolve(DEFAULT_EMBEDDING_MODEL).folder)


def _laid_tokens(lengths: Sequence[int]) -> int:
    """Of the rows in which a device lays texts of these lengths."""
    return rows_of(_model(), lengths, stepped=False).bucket.tokens


def chips_of(macs: int) -> list[Chip]:
    return list(islice(cycle(CHIPS), macs))


@cache
def _corpus() -> tuple[str, ...]:
    return tuple(docstring.text for docstring in docstrings())


def fill(connection: Redis, jobs: int, seed: int) -> None:
    """A backlog of docstrings, in random order."""
    texts = list(_corpus())
    random.Random(seed).shuffle(texts)
    corpus, producer = cycle(texts), Producer(connection=connection)
    for _ in range(jobs):
        producer.embed(list(islice(corpus, _TEXTS_A_JOB)), bulk=True)


def all_jobs(connection: Redis) -> list[tuple[ClaimedJob, int]]:
    """The backlog taken off its queue, each job with its tokens."""
    claims, found = Claims("assigner", _LEASE_S), list[tuple["ClaimedJob", int]]()
    requests = EmbeddingRequests(
        open_simulated_embedding(EngineConfig(kind="embedding")).info, [SimulatedTextEncoder()], NOTHING
    )
    while claim := claims.claim(_QUEUES[1:], 256, 10**9).run(connection).jobs:
        for job in claim:
            request = requests.parse(job.fields)
            found.append((job, sum(len(row.ids) for row in requests.encode(request, requests.texts(request)))))
    return found


def best_assignment(chips: Sequence[Chip], jobs: Sequence[tuple[ClaimedJob, int]]) -> list[list[ClaimedJob]]:
    """Each job for the Mac that would end it soonest, the long ones first; each list in the order of the backlog."""
    token_s = [chip.cost.seconds(chip.batch_tokens) / chip.batch_tokens for chip in chips]
    lists: list[list[int]] = [[] for _ in chips]
    busy_s = [0.0] * len(chips)
    for job in sorted(range(len(jobs)), key=lambda at: -jobs[at][1]):
        tokens = jobs[job][1]
        best = min(range(len(chips)), key=lambda at: busy_s[at] + tokens * token_s[at])
        busy_s[best] += tokens * token_s[best]
        lists[best].append(job)
    return [[jobs[at][0] for at in sorted(each)] for each in lists]


def run(connection: Redis, chips: Sequence[Chip], rule: str, lists: Sequence[Sequence[ClaimedJob]] = ()) -> list[Mac]:
    """Until nothing is left. `rule`: `cost`, `rank` (the rule before), or `static`, each Mac its list."""
    clock = Clock(len(chips))
    macs = [
        Mac(f"mac{at}", chip, Jobs(f"mac{at}", connection, lists[at] if lists else None), clock)
        for at, chip in enumerate(chips)
    ]
    serving = macs
    if rule == "rank":
        records = [mac.record.model_copy(update={"prefer": "energy"}) for mac in macs]
        serving = [
            mac for at, mac in enumerate(macs) if queues_for(records[at], records[:at] + records[at + 1 :]) == _QUEUES
        ]
    for mac in serving:
        if rule == "cost":
            mac.intake.share(shares(mac.record, [other.record for other in macs if other is not mac]))
        clock.at(0.0, mac.turn)
    clock.run()
    return macs


def measure(connection: Redis, macs: int, seconds: float) -> dict[str, Any]:
    """One size: a backlog that takes the fleet about so many seconds, by each rule."""
    chips = chips_of(macs)
    tokens_per_s = sum(chip.batch_tokens / chip.cost.seconds(chip.batch_tokens) for chip in chips)
    jobs = max(2 * macs, round(seconds * tokens_per_s / (_TEXTS_A_JOB * 45)))
    took: dict[str, float] = {}
    for rule in ("cost", "rank", "static"):
        connection.flushall()
        fill(connection, jobs, macs)
        lists = best_assignment(chips, all_jobs(connection)) if rule == "static" else ()
        ran = run(connection, chips, rule, lists)
        assert sum(mac.texts for mac in ran) == jobs * _TEXTS_A_JOB, "each text runs once"
        took[rule] = max(mac.ended_at for mac in ran)
        progress(f"{macs} Macs, {rule}: {took[rule]:.1f} s")
    connection.flushall()
    return {
        "Macs": macs,
        "texts": jobs * _TEXTS_A_JOB,
        "by cost (s)": took["cost"],
        "by rank (s)": took["rank"],
        "best static (s)": took["static"],
        "of best static": round(took["static"] / took["cost"], 3),
        "times by rank": round(took["rank"] / took["cost"], 2),
    }


def tell(report: Report, rows: Sequence[dict[str, Any]]) -> None:
    lines = "; ".join(f"{chip.name} {chip.call_ms:g} ms + {chip.token_us:g} us a token" for chip in CHIPS)
    report.table(
        "mixed",
        f"Seconds that one backlog takes unequal simulated Macs, {_TEXTS_A_JOB} texts a job, by a virtual clock",
        rows,
        [f"the chips, in turn: {lines}", "of best static: 1 is as soon as the best assignment known beforehand"],
    )
