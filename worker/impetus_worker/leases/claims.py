"""What a worker does to jobs in Redis, one script each: claim, finish, renew, holds, forget, recover, sweep, strays,
bury.

A claim gives each job a *token*, which names this run of it; whoever ends the job shows the token, and nothing is
written where another stands by now. The *lease* says only until when a worker need not be missed. Tokens and leases lie
under `impetus:`, where a producer need have no rights. RQ's own keys and fields are those of rq 3.0;
`tests/worker/leases/test_claims.py` compares them with what RQ itself writes.

Every script touches just the fields needed and is one round trip, however many jobs. Times are the server's. Knows
Redis and the layout of keys; knows nothing of batches, models or engines.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from impetus_producer.contract import VECTORS_FIELD

from .portions import WHOLE
from .scripts import Call, Script, ids

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from .portions import Portion

LONGEST_LEASE_S = 600
"""One that ends later is from before the server's clock was set back."""
SUSPECT_FROM_DEATHS = 2
"""A job that was running when a worker died runs beside others once more; from the second death on it runs alone."""
DEATHS_ALONE = 3
"""A job that was running when so many died, and nothing beside it, is poison."""
TOKEN_MARK = "i"
"""What our tokens begin with, and RQ's, which are hexadecimal, never do."""
_DEFAULT_TIMEOUT_S = 180
"""RQ's own, for jobs that name none (`Queue.DEFAULT_TIMEOUT`)."""
_MAX_TIMEOUT_S = 10**9
_REGISTRY_MARGIN_S = 24 * 3600
"""RQ's own cleanup, which `rq info` runs too, fails a started job once its registry score has passed. Ours puts it
back as soon as its lease has run out, so the score leaves it a day to do so."""


def whole_number(value: bytes | None, most: int = _MAX_TIMEOUT_S) -> int | None:
    """Decimal digits as a number, at most `most`; None for anything else, however many digits it has."""
    if value is None or not value.isdigit():
        return None
    return int(value) if len(value) <= len(str(most)) and int(value) <= most else most


# One is made for each job, and to make a frozen one takes some four times as long: of `Ending` too.
@dataclass(slots=True)
class ClaimedJob:
    """A job that is this worker's until another run of it is claimed. `fields` is RQ's hash before, undecoded."""

    id: str
    token: str
    """Names this run."""
    queue: str
    fields: dict[bytes, bytes] = field(repr=False)
    claimed_at: float
    """Epoch seconds, by the server's clock."""
    deaths: int = 0
    """How many workers died, seen by their supervisors, while their engines were running it."""
    deaths_alone: int = 0
    """Of these, with nothing else running."""
    cancelled: bool = False
    """Whether somebody wants it cancelled."""
    server: int = 0
    """Which of the worker's servers it lies on."""

    @property
    def suspect(self) -> bool:
        """Whether nothing may run beside it."""
        return self.deaths >= SUSPECT_FROM_DEATHS

    @property
    def timeout_s(self) -> int | None:
        """RQ's time limit; None for none."""
        value = self.fields.get(b"timeout")
        if value == b"-1":
            return None
        timeout_s = whole_number(value)
        return _DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s or None


class Verb(StrEnum):
    """How a run ends in Redis."""

    FINISH = "finish"
    COMPLETE = "complete"
    """Finishes it whatever it has of dependents."""
    FAIL = "fail"
    STOP = "stop"
    ABORT = "abort"
    """Fails it whatever it has of dependents."""
    RETURN = "return"


class Answer(StrEnum):
    """What became of an ending."""

    DONE = "1"
    NOT_OURS = "0"
    """Another run of the job counts by now, or it was cancelled or deleted: nothing was written."""
    FOR_RQ = "2"
    """RQ has more to do."""


_ANSWERS = {int(answer): answer for answer in Answer}
"""By what the script says."""


@dataclass(slots=True)
class Ending:
    """How one run ends: a result (the serializer's bytes), a reason, or back to the queue."""

    job: ClaimedJob
    verb: Verb
    payload: bytes = b""
    ttl_s: int = -1
    vectors: bytes | None = None
    """Stored beside the result, as the field `VECTORS_FIELD` of its entry."""
    stored: bytes = field(init=False, repr=False)
    """The payload as RQ's `Result.serialize` writes it: base64, a reason deflated first."""

    def __post_init__(self) -> None:
        self.stored = b""
        if self.verb is not Verb.RETURN:
            is_result = self.verb in (Verb.FINISH, Verb.COMPLETE)
            self.stored = base64.b64encode(self.payload if is_result else zlib.compress(self.payload))


@dataclass(frozen=True, slots=True)
class Left:
    """How many jobs of a queue wait after a claim, how many wait or run with whomever, whether more would have been
    taken, had they not been for others, and the id of the first that waits."""

    waiting: int
    open: int = 0
    for_others: bool = False
    first: bytes = b""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim brought."""

    suspended: bool
    jobs: list[ClaimedJob]
    left: tuple[Left, ...] = ()
    """Of each of the queues."""

    @property
    def more(self) -> bool:
        """Whether any queue has more."""
        return any(left.waiting for left in self.left)


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a renewal told: the ids of jobs that are no longer this worker's, and of those somebody wants cancelled."""

    lost: list[str]
    cancelled: list[str]


class Claims:
    """One worker's hold on its jobs at a server, as calls that somebody sends. Safe to share between threads."""

    def __init__(self, worker: str, lease_s: int, server: int = 0) -> None:
        self._worker = worker
        self._server = server
        self._lease_s = lease_s
        self._run = uuid4().hex[:8]
        self._numbers = count(1)

    def claim(
        self, queues: Sequence[str], max_jobs: int, max_bytes: int, portions: Sequence[Portion] = ()
    ) -> Call[Claim]:
        """Takes up to `max_jobs` jobs, from the first queue while it has any; at most about `max_bytes` of payload.

        `portions`: what of each queue is this worker's to take; all, where they are left out.
        """
        # Tokens of one worker sort in the order of its claims.
        prefix = f"{TOKEN_MARK}{self._run}{next(self._numbers):08x}"

        def read(reply: Any) -> Claim:
            claimed_at = float(reply[1])
            jobs = [
                ClaimedJob(
                    id=job_id.decode(),
                    token=token.decode(),
                    queue=queues[int(position) - 1],
                    fields=dict(zip(*(iter(fields),) * 2, strict=True)),
                    claimed_at=claimed_at,
                    deaths=whole_number(deaths) or 0,
                    deaths_alone=whole_number(alone) or 0,
                    cancelled=cancelled == 1,
                    server=self._server,
                )
                for job_id, token, position, fields, deaths, alone, cancelled in reply[3:]
            ]
            of_queues = zip(*(iter(reply[2]),) * 4, strict=True)
            left = tuple(Left(waiting, held, bool(rest), first) for waiting, held, rest, first in of_queues)
            return Claim(reply[0] == 1, jobs, left)

        numbers = [number for portion in portions or [WHOLE] * len(queues) for number in portion.numbers]
        arguments = [self._worker, self._lease_s, _REGISTRY_MARGIN_S, max_jobs, max_bytes, prefix, *queues, *numbers]
        return Call(Script.named("claim"), arguments, read, [f"rq:queue:{queue}" for queue in queues])

    def finish(self, endings: Iterable[Ending], worked_s: float = 0.0) -> Call[list[Answer]]:
        """Ends runs in one transaction, each only while its token stands."""
        arguments: list[Any] = [self._worker, f"{worked_s:.6f}"]
        for ending in endings:
            job, vectors = ending.job, ending.vectors
            arguments += (
                job.id, job.token, job.queue, ending.verb.value, ending.stored,
                "" if vectors is None else VECTORS_FIELD, vectors or b"", ending.ttl_s, f"{job.claimed_at:.6f}",
                "1" if job.fields.get(b"dependency_ids") else "",
            )  # fmt: skip
        return Call(Script.named("finish"), arguments, lambda answer: [_ANSWERS[code] for code in answer])

    def renew(self, jobs: Iterable[ClaimedJob]) -> Call[Renewal]:
        """Extends the leases of the runs that are this worker's."""
        arguments: list[Any] = [self._worker, self._lease_s, _REGISTRY_MARGIN_S]
        for job in jobs:
            arguments += (job.id, job.token, job.queue)
        return Call(Script.named("renew"), arguments, lambda answer: Renewal(ids(answer[0]), ids(answer[1])))

    def holds(self, job: ClaimedJob) -> Call[bool]:
        """Whether a run that is to be ended by RQ's means is this worker's."""
        return Call(Script.named("holds"), [self._worker, job.id, job.token, job.queue], bool)

    def forget(self, job: ClaimedJob) -> Call[bool]:
        """Closes the books on a run that was ended by RQ's means; False where it was not, and is started yet."""
        return Call(Script.named("forget"), [self._worker, job.id, job.token, job.queue], bool)


def recover(queue: str, interval_s: float, until: float | None = None) -> Call[list[str]]:
    """Puts the queue's jobs whose lease ran out back at its front, at most once in `interval_s`; their ids.

    `until`: the server's time, in seconds, after which it does nothing. A server that was silent for a while finds all
    leases run out, and must not act on what was asked of it before they could be renewed.
    """
    arguments = [queue, int(interval_s * 1000), "" if until is None else until, LONGEST_LEASE_S]
    return Call(Script.named("recover"), arguments, ids)


def sweep(queue: str, interval_s: float) -> Call[list[str]]:
    """Looks through a part of the started jobs for some that nobody has a lease on, at most once in `interval_s`; the
    ids put back.
    """
    return Call(Script.named("sweep"), [queue, TOKEN_MARK, int(interval_s * 1000)], ids)


def strays(queues: Sequence[str], interval_s: float, patience_s: float) -> Call[tuple[list[str], list[str]]]:
    """Looks through a part of all keys for jobs of these queues that wait or run, and lie nowhere, at most once in
    `interval_s`; puts back those that it first saw `patience_s` ago. The ids put back, and those of scheduled jobs that
    it saw whose time is gone.
    """
    arguments = [int(interval_s * 1000), int(patience_s), *queues]
    return Call(Script.named("strays"), arguments, lambda answer: (ids(answer[0]), ids(answer[1])))


def bury(worker: str, queues: Sequence[str], begun: Collection[str]) -> Call[tuple[list[str], int]]:
    """Says that a worker's process was seen to end: its jobs go back to the front, and those in `begun`, which its
    engine was running, have met a death. Counts once, however often it is said. Returns the ids put back, and how many
    are left: it is to be said again for these.
    """
    arguments = [worker, len(queues), *queues, len(begun), *begun]
    return Call(Script.named("bury"), arguments, lambda answer: (ids(answer[0]), int(answer[1])))
