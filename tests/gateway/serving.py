"""A gateway in a thread of this process, before a real server and real workers that a module's tests share."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
from redis import Redis

from impetus_gateway.app import make_app
from impetus_gateway.callers import Keys
from impetus_gateway.gateway import Gateway
from impetus_gateway.settings import Settings
from impetus_producer import Producer
from impetus_producer.asynchronous import AsyncProducer
from tests.worker.conftest import Fleet, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

MODELS = Path(__file__).parents[1] / "data" / "models"
REAL_EMBEDDINGS = ("--embedding-model", str(MODELS / "bge"), "--embedding-backend", "numpy")
REAL_GENERATION = ("--generation-model", str(MODELS / "tiny-says"), "--generation-backend", "mlx")


@dataclass
class Serving:
    """A gateway that serves. `client` asks it; `producer` goes to the queues without it."""

    url: str
    client: httpx.Client
    producer: Producer
    gateway: Gateway
    server: uvicorn.Server
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
def serving(redis_url: str, keys: Keys | None = None, *, patience_s: float = 20, **settings: Any) -> Iterator[Serving]:
    producer = Producer(redis_url)
    made = Settings(**{"drain_s": 20.0, **settings})
    gateway = Gateway(made, keys or Keys(), AsyncProducer(redis_url, patience_s=patience_s), producer.connection)
    config = uvicorn.Config(
        make_app(gateway), port=0, log_level="warning", lifespan="on", ws="none", timeout_graceful_shutdown=20
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), name="gateway")
    thread.start()
    try:
        eventually(lambda: server.started or not thread.is_alive())
        assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield Serving(url, client, producer, gateway, server, thread)
    finally:
        server.should_exit = True
        thread.join(40)
        producer.connection.close()
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


def is_ready(served: Serving, *roles: str) -> bool:
    return all(served.client.get("/ready", params={"role": role}).status_code == 200 for role in roles)
