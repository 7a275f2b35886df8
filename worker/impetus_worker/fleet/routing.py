"""Who serves which queue: each worker says what it is, looks at what the others are, and decides for itself.

All workers of a role serve its queues, each by its share of what they do together (`shares`). One that prefers energy
serves embeddings only while no Neural Engine's worker lives for its model, and otherwise stands by, for as long as the
queues move (see `standing_by`). Records live for seconds unless renewed, so that the dead are missed soon; whoever
arrives, leaves or measures itself anew tells the others to look again, so that nobody waits for that. With the record
goes what RQ keeps of a worker. Knows Redis and records; knows nothing of jobs.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import ValidationError

from impetus_producer.contract import ROLE_QUEUES, STANDBY_QUEUE, WorkerRecord

from ..inbox import Rerouted, Shared
from ..leases.portions import ALONE
from ..leases.scripts import Call, Script, nothing
from ..settings import RECORD_TTL_S
from .shares import is_news, shares
from .standing_by import SERVE_S, STILL_S, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from redis import Redis

    from impetus_backends.machine.footprint import Use
    from impetus_producer.contract import MeasuredCost

LOOK = "impetus-look"
"""The command by which a worker has another one look again."""
_RQ_HASH_TTL_S = 60
_log = logging.getLogger(__name__)


def queues_for(own: WorkerRecord, others: Iterable[WorkerRecord]) -> tuple[str, ...]:
    """What a worker should serve beside these others: its role's queues, or `STANDBY_QUEUE` alone."""
    if own.role == "embedding" and own.prefer == "energy" and not own.neural_engine:
        for other in others:
            if other.role == "embedding" and other.neural_engine and other.serving and _serves_all_of(other, own):
                return (STANDBY_QUEUE,)
    return ROLE_QUEUES[own.role]


def _serves_all_of(other: WorkerRecord, own: WorkerRecord) -> bool:
    """Whether each of a worker's models is one of the other's."""
    names = {other.model, *other.aliases}
    first = own.model in names or other.model in own.aliases
    return first and all(model.name in names for model in own.more_models)


def peers(own: WorkerRecord, others: Sequence[WorkerRecord]) -> list[WorkerRecord]:
    """The others that serve the same queues."""
    everyone = [own, *others]
    return [
        other
        for other in others
        if other.role == own.role
        and other.serving
        and queues_for(other, [each for each in everyone if each is not other]) != (STANDBY_QUEUE,)
    ]


class Conditions(Protocol):
    """Of a worker's machine: what it goes by now, and whether there is anything against taking bulk."""

    @property
    def against_bulk(self) -> str | None: ...

    def preference(self) -> Literal["energy", "speed"]: ...


class Routing:
    """One worker's place among the others. `queues` is what it should serve now, nothing before its first look.

    `is_serving`: whether the engine can be given work; `engine_deaths`: how often it died; `cost`: what its batches
    cost, as measured; `memory`: what it has; `conditions`: what its machine says to that. `tell` hears a `Rerouted`
    when `queues` has changed, and a `Shared` when its share of them has.
    """

    def __init__(
        self,
        record: WorkerRecord,
        *,
        is_serving: Callable[[], bool],
        engine_deaths: Callable[[], int],
        cost: Callable[[], MeasuredCost | None] = lambda: None,
        memory: Callable[[], Use | None] = lambda: None,
        conditions: Conditions | None = None,
        tell: Callable[[object], None],
        ttl_s: float = RECORD_TTL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queues: tuple[str, ...] = ()
        self._all_queues = (*ROLE_QUEUES[record.role], STANDBY_QUEUE)
        self._record = record
        self._watch = Watch(ROLE_QUEUES[record.role], clock)
        self._is_serving = is_serving
        self._engine_deaths = engine_deaths
        self._cost = cost
        self._memory = memory
        self._conditions = conditions
        self._shares = (ALONE, ALONE)
        self._tell = tell
        self._ttl_ms = int(ttl_s * 1000)
        self._for_rq = _fields_for_rq()
        self._shown: str | None = None
        self._looking = threading.Lock()
        self._stood_down = self._left = False

    def show(self, state: str) -> None:
        """RQ's word for the worker's state, to be written with the next look."""
        self._shown = state

    def stand_down(self) -> None:
        """From the next look on this worker says that it takes no more work, so that another does at once."""
        self._stood_down = True

    def look(self, connection: Redis) -> None:
        """Says what this worker is, and decides anew; raises `RedisError`."""
        with self._looking:
            if self._left:
                return
            record = self._describe_itself()
            if not self.queues:  # it is not to be in RQ's books with queues that are another's, not for a moment
                self._decide(record, Call(Script.named("others"), [record.name], list).run(connection))
            others = self._announce(record).run(connection)
            if self.queues == (STANDBY_QUEUE,):
                self._watch.look(connection)
            if self._decide(record, others):
                self._announce(record).run(connection)  # RQ's books follow at once

    def _describe_itself(self) -> WorkerRecord:
        cost = self._cost()
        if is_news(self._record.cost, cost):
            self._record = self._record.model_copy(update={"cost": cost})
        now: dict[str, Any] = {"serving": self._is_serving(), "engine_deaths": self._engine_deaths()}
        if (use := self._memory()) is not None:
            now |= {"memory_bytes": use.used_bytes, "memory_limit_bytes": use.limit_bytes}
        if self._conditions is not None:
            now |= {"prefer": self._conditions.preference(), "bulk": self._conditions.against_bulk is None}
        return self._record.model_copy(update=now)

    def _decide(self, record: WorkerRecord, read: list[bytes]) -> bool:
        """Whether it serves other queues from now on."""
        watched_in_vain, others = self._watch.is_over, _readable(read)
        if (now := shares(record, peers(record, others))) != self._shares:
            self._shares = now
            self._tell(Shared(now))
        queues = queues_for(record, () if watched_in_vain else others)
        if queues == self.queues or self._stood_down:
            return False
        if watched_in_vain:
            _log.warning(
                "jobs wait, and in %g s no worker took any, though one with a Neural Engine says that it serves: this "
                "one serves as well for %g s, and `impetus status` shows them all", STILL_S, SERVE_S,
            )  # fmt: skip
        self.queues = queues
        self._tell(Rerouted(queues))
        return True

    def _announce(self, record: WorkerRecord) -> Call[list[bytes]]:
        shown, self._shown = self._shown, None
        arguments: list[Any] = [
            *(record.name, self._ttl_ms, "" if self._stood_down else record.model_dump_json()),
            *(_RQ_HASH_TTL_S, STANDBY_QUEUE),
            *(len(self.queues), *self.queues, len(self._all_queues), *self._all_queues),
            *(part for field in self._for_rq.items() for part in field),
            *(("state", shown) if shown else ()),
        ]
        return Call(Script.named("announce"), arguments, list)

    def leave(self, connection: Redis) -> None:
        """Takes this worker out of all books; raises `RedisError`."""
        with self._looking:
            self._left = True
            Call(Script.named("withdraw"), [self._record.name, *self._all_queues], nothing).run(connection)


def _fields_for_rq() -> dict[str, str]:
    """What `rq.worker.BaseWorker.serialize` says of a worker besides its queues and times."""
    from rq.version import VERSION

    return {
        "pid": str(os.getpid()),
        "hostname": socket.gethostname(),
        "ip_address": "unknown",
        "version": VERSION,
        "python_version": f"{platform.python_version()} {sys.platform}",
    }


def _readable(records: Iterable[bytes]) -> list[WorkerRecord]:
    found = []
    for record in records:
        try:
            found.append(WorkerRecord.model_validate_json(record))
        except ValidationError as error:
            _log.debug("ignoring a worker's record that cannot be read: %s", error)
    return found
