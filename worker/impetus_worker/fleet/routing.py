"""Who serves which queue: each worker says what it is, looks at what the others are, and decides for itself.

A Neural Engine's worker serves the queues of embeddings. Any other serves them only while no such worker lives for its
model, and otherwise stands by. Records live for seconds unless renewed, so that the dead are missed soon; whoever
arrives or leaves rings at the others, so that nobody waits for that. Knows Redis and records; knows nothing of jobs.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from redis.exceptions import RedisError

from impetus_producer.contract import ROLE_QUEUES, STANDBY_QUEUE, WorkerRecord

from ..leases.claims import lua_source
from ..settings import RECORD_RENEW_S, RECORD_TTL_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from redis import Redis

LOOK = "impetus-look"
"""The command by which a worker rings at another."""
_log = logging.getLogger(__name__)


def queues_for(own: WorkerRecord, others: Iterable[WorkerRecord]) -> tuple[str, ...]:
    """What a worker should serve beside these others: its role's queues, or `STANDBY_QUEUE` alone."""
    if own.role == "embedding" and not own.neural_engine:
        for other in others:
            if other.role == "embedding" and other.neural_engine and other.serving and _same_model(own, other):
                return (STANDBY_QUEUE,)
    return ROLE_QUEUES[own.role]


def _same_model(one: WorkerRecord, other: WorkerRecord) -> bool:
    return one.model in (other.model, *other.aliases) or other.model in one.aliases


class Routing:
    """One worker's place among the others. `queues` is what it should serve now; read it often.

    `is_serving`: whether the engine can be given work; `engine_deaths`: how often it died; `on_change`: called, from a
    thread, when `queues` has changed.
    """

    def __init__(
        self,
        connection: Redis,
        record: WorkerRecord,
        *,
        is_serving: Callable[[], bool],
        engine_deaths: Callable[[], int],
        on_change: Callable[[], None],
        ttl_s: float = RECORD_TTL_S,
        renew_s: float = RECORD_RENEW_S,
    ) -> None:
        self.queues: tuple[str, ...] = ROLE_QUEUES[record.role]
        self._connection = connection
        self._record = record
        self._is_serving = is_serving
        self._engine_deaths = engine_deaths
        self._on_change = on_change
        self._ttl_ms = int(ttl_s * 1000)
        self._renew_s = renew_s
        self._announce = connection.register_script(lua_source("announce"))
        self._looking = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="routing", daemon=True)

    def start(self) -> None:
        """Looks again and again, from a thread of its own: a loop that is held up must not look dead."""
        self._thread.start()

    def look(self) -> None:
        """Says what this worker is, and decides anew; raises `RedisError`."""
        with self._looking:
            if self._stopped.is_set():
                return
            record = self._record.model_copy(
                update={"serving": self._is_serving(), "engine_deaths": self._engine_deaths()}
            )
            answer: Any = self._announce(args=[record.name, self._ttl_ms, record.model_dump_json()])
            queues = queues_for(record, _readable(answer))
            changed = queues != self.queues
            self.queues = queues
        if changed:
            self._on_change()

    def leave(self) -> None:
        """Says that this worker takes no more work, so that another does at once."""
        with self._looking:
            self._stopped.set()
            try:
                withdraw(self._connection, self._record.name)
            except RedisError as error:
                _log.warning("Redis: %s; the others miss this worker when its record has run out", error)

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stopped.wait(self._renew_s):
            try:
                self.look()
            except RedisError as error:
                # What it served last it goes on serving: without a server there is nothing to serve anyway.
                _log.warning("Redis: %s; this worker's place among the others is looked up again", error)


def withdraw(connection: Redis, worker: str) -> None:
    """Takes away the record of a worker that leaves, or is known to be dead."""
    connection.register_script(lua_source("withdraw"))(args=[worker])


def _readable(records: Iterable[bytes]) -> list[WorkerRecord]:
    found = []
    for record in records:
        try:
            found.append(WorkerRecord.model_validate_json(record))
        except ValidationError as error:
            _log.debug("ignoring a worker's record that cannot be read: %s", error)
    return found
