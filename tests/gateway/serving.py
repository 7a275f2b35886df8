"""A gateway in a thread of this process, before a real server and real workers that a module's tests share."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from redis import Redis

from impetus_gateway.address import Address
from impetus_gateway.entry.callers import Keys
from impetus_gateway.gateway import Gateway
from impetus_gateway.serving import Server, make_server
from impetus_gateway.settings import Settings
from impetus_producer.asynchronous import for_tasks
from impetus_producer.batches.store import BatchStore
from impetus_producer.spread import open_producer
from tests.paths import DATA
from tests.patience import eventually
from tests.producer.stock_worker import QUEUES, StockWorker, generation_of, honest_work, working
from tests.worker.conftest import Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from impetus_gateway.webhooks import Receiver
    from impetus_producer import Producer
    from impetus_producer.bulk.recall import Recall

MODELS = DATA / "models"
REAL_EMBEDDINGS = ("--embedding-model", str(MODELS / "bge"), "--embedding-backend", "numpy")
REAL_GENERATION = ("--generation-model", str(MODELS / "tiny-says"), "--generation-backend", "mlx")


@dataclass
class Serving:
    """A gateway that serves. `client` asks it; `producer` goes to the queues without it."""

    url: str
    client: httpx.Client
    producer: Producer
    gateway: Gateway
    server: Server
    thread: threading.Thread

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(path, json=body, headers=named)

    def status_of(self, job_id: str) -> str:
        return self.producer.handle(job_id).status()

    def drain(self) -> None:
        """As SIGTERM does."""
        self.server.should_exit = True


@contextmanager
def serving(
    redis_url: str,
    keys: Keys | None = None,
    *,
    others: Sequence[str] = (),
    patience_s: float = 20,
    port: int = 0,
    files: Path | None = None,
    receivers: Sequence[Receiver] = (),
    recall: Recall | None = None,
    **settings: Any,
) -> Iterator[Serving]:
    producer = open_producer([redis_url, *others])
    folder = files or Path(tempfile.mkdtemp())
    store = BatchStore(folder)
    made = Settings(**{"drain_s": 20.0, **settings})
    asking = for_tasks(producer, patience_s=patience_s)
    gateway = Gateway(made, keys or Keys(), asking, producer, store, receivers, recall)
    address = Address(port=port)
    server, listening = make_server(gateway, address), address.open()
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), name="gateway")
    thread.start()
    try:
        eventually(lambda: server.started or not thread.is_alive())
        assert thread.is_alive()
        url = address.url(listening.getsockname()[1])
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield Serving(url, client, producer.servers[0], gateway, server, thread)
    finally:
        server.should_exit = True
        thread.join(40)
        for each in producer.servers:
            each.connection.close()
        if files is None:
            shutil.rmtree(folder)
        assert not thread.is_alive()


@contextmanager
def workers(redis_url: str, folder: Path, *options: str, roles: str = "embedding,generation") -> Iterator[Fleet]:
    """A worker process on an empty server, on the simulated backends unless options say otherwise."""
    with Redis.from_url(redis_url) as connection:
        connection.flushall()
        fleet = Fleet(redis_url, connection, folder)
        try:
            fleet.start(*options, roles=roles)
            yield fleet
        finally:
            for worker in fleet.running:
                worker.stop()


def _work(function: str, request: dict[str, Any]) -> Any:
    """Answers whatever is asked."""
    return generation_of("Go on.") if function.endswith("generate") else honest_work(function, request)


@contextmanager
def stock_worker(redis_url: str) -> Iterator[StockWorker]:
    """A thread that ends jobs as RQ's own worker does, which takes no time to start, and is in RQ's books."""
    always = {"state": "idle", "queues": ",".join(QUEUES), "last_heartbeat": "2999-01-01T00:00:00Z"}
    with working(redis_url, _work) as worker, Redis.from_url(redis_url) as connection:
        connection.hset("rq:worker:stock", mapping=always)
        connection.sadd("rq:workers", "rq:worker:stock")
        yield worker


def is_ready(served: Serving, *roles: str) -> bool:
    return all(served.client.get("/ready", params={"role": role}).status_code == 200 for role in roles)
