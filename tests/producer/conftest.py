"""Nothing of the user's own set-up reaches these tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from impetus_producer import Producer

from .servers.valkey import Proxy, Valkey
from .stock_worker import StockWorker, working

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from redis import Redis

    from tests.conftest import RedisServer


@pytest.fixture(autouse=True)
def _no_server_but_the_tests_own(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("IMPETUS_REDIS_URL", raising=False)
    monkeypatch.setenv("IMPETUS_STATE_DIR", str(tmp_path_factory.mktemp("state")))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def producer(connection: Redis) -> Iterator[Producer]:
    with Producer(connection=connection) as made:
        yield made


@pytest.fixture
def worker(redis_url: str) -> Iterator[StockWorker]:
    with working(redis_url) as running:
        yield running


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Callable[..., Valkey]]:
    """Makes servers with options of the test's, which end with it."""
    made: list[Valkey] = []

    def make(*options: str, sentinel: bool = False) -> Valkey:
        made.append(Valkey(tmp_path, *options, sentinel=sentinel))
        return made[-1]

    yield make
    for server in made:
        server.kill()


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str) -> Iterator[Proxy]:
    """A proxy before the empty server."""
    proxy = Proxy(redis_server.port)
    yield proxy
    proxy.close()
