"""Faults of jobs: texts that an engine cannot bear, and many jobs at once whose ends are more work than others'."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from rq import Callback, Queue
from rq.serializers import JSONSerializer
from scripts.proofs.faults.fault import Fault
from scripts.proofs.faults.scene import OBSERVER
from tests.worker.faults.account import BAD, HANG, POISON

from impetus_producer import connect

if TYPE_CHECKING:
    from redis import Redis
    from rq.job import Job
    from scripts.proofs.faults.scene import Scene

_EMBED = "impetus_worker.jobs.embed"
_CALLBACK = "tests.worker.faults.fault_callbacks.take_two_seconds"
_DUE_IN_S = 6.0


def _send(scene: Scene, text: str) -> bool:
    scene.traffic.special.append(text)
    return True


def _endings(scene: Scene) -> bool:
    """Beside no fault of the server: RQ itself enqueues in more than one step, and may lose jobs between them."""
    if not scene.hold("server"):
        return False
    ended = threading.Event()
    seed = scene.random.getrandbits(40)

    def enqueue() -> None:
        try:
            connection = connect(scene.networks[OBSERVER].url)
            _Endings(scene, connection, seed).enqueue()
            connection.close()
        except Exception as error:  # noqa: BLE001 - said in the verdict
            scene.complain("jobs of many kinds could not be enqueued", repr(error))
        finally:
            ended.set()

    def look() -> None:
        if ended.is_set():
            # It was whole all the time.
            scene.release("server")
            scene.server_spells.pop()
        else:
            scene.later(0.1, look)

    threading.Thread(target=enqueue, name="endings", daemon=True).start()
    look()
    return True


class _Endings:
    """Jobs that ask RQ for more as they end, of one seed."""

    def __init__(self, scene: Scene, connection: Redis, seed: int) -> None:
        self._history = scene.history
        self._connection = connection
        self._share = 1.0 if scene.alone else 0.05
        self._seed = seed
        self._number = 0
        self._queue = Queue("embedding-bulk", connection=connection, serializer=JSONSerializer)

    def enqueue(self) -> None:
        self._scheduled(int(10_000 * self._share))
        self._not_kept(int(1_000 * self._share))
        self._with_callbacks(max(2, int(10 * self._share)))
        self._with_dependents(int(1_500 * self._share))

    def _job(self, **options: Any) -> tuple[str, Job]:
        """One that is in no queue yet, and what acknowledges it."""
        self._number += 1
        request = {"input": f"{self._seed:x} {self._number:x}"}
        options = {"result_ttl": -1, "failure_ttl": -1, **options}
        return self._history.attempt(request), self._queue.create_job(_EMBED, args=(request,), **options)

    def _scheduled(self, count: int) -> None:
        """All due at the same moment."""
        when = datetime.now(UTC) + timedelta(seconds=_DUE_IN_S)
        made = [self._job() for _ in range(count)]
        with self._connection.pipeline() as pipeline:
            for _, job in made:
                self._queue.schedule_job(job, when, pipeline=pipeline)
            pipeline.execute()
        self._acknowledge(made)

    def _not_kept(self, count: int) -> None:
        self._enqueue_all([self._job(result_ttl=0) for _ in range(count)], vanishing=True)

    def _with_callbacks(self, count: int) -> None:
        self._enqueue_all([self._job(on_success=Callback(_CALLBACK)) for _ in range(count)])

    def _with_dependents(self, count: int) -> None:
        parents, dependents = [self._job() for _ in range(count)], []
        for _, parent in parents:
            parent.save()
            sent, dependent = self._job(depends_on=parent)
            self._queue.setup_dependencies(dependent)
            dependents.append((sent, dependent))
        self._acknowledge(dependents)
        self._enqueue_all(parents)

    def _enqueue_all(self, made: list[tuple[str, Job]], *, vanishing: bool = False) -> None:
        with self._connection.pipeline() as pipeline:
            for _, job in made:
                self._queue._enqueue_job(job, pipeline=pipeline)
            pipeline.execute()
        self._acknowledge(made, vanishing=vanishing)

    def _acknowledge(self, made: list[tuple[str, Job]], *, vanishing: bool = False) -> None:
        self._history.acknowledge_all([sent for sent, _ in made], [job.id for _, job in made], vanishing=vanishing)


FAULTS = (
    Fault("poison", "a text that crashes the engine, beside others", lambda scene: _send(scene, POISON), 1),
    Fault("hang", "a text that hangs the engine", lambda scene: _send(scene, HANG), 1),
    Fault("bad", "a text with which every batch fails", lambda scene: _send(scene, BAD), 1),
    Fault(
        "rq-endings",
        "dependents, callbacks of 2 s, result_ttl=0 and 10,000 jobs due at once (fewer beside others)",
        _endings,
        1,
    ),
)
