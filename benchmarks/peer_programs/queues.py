"""Other task queues at the job that `scripts/bench queue` gives Impetus: a text in, 2 KB of base64 stored as result.

Runs in the peers' environment, so it imports nothing of ours:

    python queues.py PEER enqueue URL COUNT     puts COUNT jobs on the queue and ends
    python queues.py PEER work URL              works the queue in one process until its standard input closes

Each peer is set as it is fastest with results stored and one process: logging off, no events, no waits between polls.
Numbers of threads and the like were tried; see the comments.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import logging
import os
import signal
import struct
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# As many bytes as Impetus' result of one text has for its 384 float32.
RESULT = base64.b64encode(struct.pack("<384f", *(index / 384 for index in range(384)))).decode()
_RESULT_TTL_S = 3600


def noop(text: str) -> str:
    return RESULT


async def noop_arq(context: dict[str, Any], text: str) -> str:
    return RESULT


def texts(count: int) -> Iterator[str]:
    return (f"a short text that is number {number} of many" for number in range(count))


def package(name: str) -> Any:
    # Not an import statement: these are not installed where this file is type-checked.
    return importlib.import_module(name)


class Huey:
    """Two worker threads: faster than one and than four."""

    def __init__(self, url: str) -> None:
        self.huey = package("huey").RedisHuey("bench", url=url)
        self.task = self.huey.task(name="noop")(noop)

    def enqueue(self, count: int) -> None:
        for text in texts(count):
            self.task(text)

    def work(self) -> None:
        self.huey.create_consumer(workers=2, periodic=False, initial_delay=0.01, max_delay=0.05).run()


class Dramatiq:
    """One process with 16 threads: faster than its own 8, than four and than one."""

    def __init__(self, url: str) -> None:
        self.dramatiq = package("dramatiq")
        self.broker = package("dramatiq.brokers.redis").RedisBroker(url=url)
        backend = package("dramatiq.results.backends").RedisBackend(url=url)
        self.broker.add_middleware(
            package("dramatiq.results").Results(backend=backend, store_results=True, result_ttl=_RESULT_TTL_S * 1000)
        )
        self.actor = self.dramatiq.actor(noop, actor_name="noop", broker=self.broker)

    def enqueue(self, count: int) -> None:
        for text in texts(count):
            self.actor.send(text)

    def work(self) -> None:
        worker = self.dramatiq.Worker(self.broker, worker_threads=16)
        worker.start()
        threading.Event().wait()


class Arq:
    """A hundred jobs at a time instead of its 10."""

    def __init__(self, url: str) -> None:
        self.arq = package("arq")
        self.settings = package("arq.connections").RedisSettings.from_dsn(url)

    def enqueue(self, count: int) -> None:
        async def put() -> None:
            pool = await self.arq.create_pool(self.settings)
            for text in texts(count):
                await pool.enqueue_job("noop", text)
            await pool.aclose()

        asyncio.run(put())

    def work(self) -> None:
        function = package("arq.worker").func(noop_arq, name="noop")
        package("arq.worker").Worker(
            [function],
            redis_settings=self.settings,
            max_jobs=100,
            poll_delay=0.01,
            keep_result=_RESULT_TTL_S,
            max_tries=1,
        ).run()


class Celery:
    """`celery worker --pool solo`, prefetching 64 at a time, without gossip, mingle, heartbeats and events."""

    prefetch = 64

    def __init__(self, url: str) -> None:
        self.app = package("celery").Celery("bench", broker=url, backend=url)
        self.app.conf.update(
            worker_prefetch_multiplier=self.prefetch,
            worker_send_task_events=False,
            worker_hijack_root_logger=False,
            broker_connection_retry_on_startup=True,
            result_expires=_RESULT_TTL_S,
        )
        self.task = self.make_task()

    def make_task(self) -> Any:
        return self.app.task(noop, name="noop")

    def enqueue(self, count: int) -> None:
        for text in texts(count):
            self.task.delay(text)

    def work(self) -> None:
        options = ["--pool", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        self.app.worker_main(["worker", "--loglevel", "ERROR", *options])


class CeleryBatches(Celery):
    """As Celery, in batches of up to 64 that wait for one another at most 10 ms; every request gets its result."""

    def make_task(self) -> Any:
        def run(requests: Any) -> None:
            for request in requests:
                self.app.backend.mark_as_done(request.id, RESULT, request=request)

        batches = package("celery_batches").Batches
        return self.app.task(run, name="noop", base=batches, flush_every=64, flush_interval=0.01)


class RqSimple:
    """RQ's SimpleWorker with RQ's JSON serializer, as Impetus' own wire has it."""

    def __init__(self, url: str) -> None:
        self.rq = package("rq")
        self.serializer = package("rq.serializers").JSONSerializer
        self.connection = package("redis").Redis.from_url(url)
        self.queue = self.rq.Queue("bench", connection=self.connection, serializer=self.serializer)

    def enqueue(self, count: int) -> None:
        many = list(texts(count))
        for start in range(0, count, 100):
            self.queue.enqueue_many(
                [
                    self.rq.Queue.prepare_data("queues.noop", (text,), result_ttl=_RESULT_TTL_S)
                    for text in many[start : start + 100]
                ]
            )

    def work(self) -> None:
        worker = self.rq.SimpleWorker([self.queue], connection=self.connection, serializer=self.serializer)
        worker.work(logging_level="WARNING")


PEERS: dict[str, type[Any]] = {
    "huey": Huey,
    "dramatiq": Dramatiq,
    "arq": Arq,
    "celery": Celery,
    "celery-batches": CeleryBatches,
    "rq-simple": RqSimple,
}


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)  # the bench started us in a session of our own


def main() -> None:
    name, action, url = sys.argv[1:4]
    logging.basicConfig(level=logging.WARNING)
    for logger in ("huey", "dramatiq", "arq", "celery", "rq.worker"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    peer = PEERS[name](url)
    if action == "enqueue":
        peer.enqueue(int(sys.argv[4]))
        return
    threading.Thread(target=_end_with_parent, daemon=True).start()
    peer.work()


if __name__ == "__main__":
    main()
