"""The two sides, for each test anew, on workers that all tests share."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest

from impetus_worker import jobs
from tests.worker.promises.comparing import Both
from tests.worker.promises.sides import Ours, Stock, our_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import RedisServer

_test_numbers = count(1)


@pytest.fixture(scope="package")
def stock_url(redis_server: RedisServer) -> Iterator[str]:
    """A database for stock workers in this process, whose jobs run on the simulated backend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPETUS_EMBEDDING_BACKEND", "simulated")
        jobs._engine.cache_clear()
        yield f"redis://{redis_server.host}:{redis_server.port}/4"
        jobs._engine.cache_clear()


@pytest.fixture(scope="package")
def our_side(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ours]:
    with our_worker(redis_server, 5, tmp_path_factory.mktemp("ours") / "log") as ours:
        yield ours


@pytest.fixture
def both(our_side: Ours, stock_url: str) -> Iterator[Both]:
    both = Both(our_side, Stock(stock_url))
    prefix = f"test{next(_test_numbers)}-"
    both.ours.start_test(prefix)
    both.stock.start_test(prefix)
    yield both
    both.stock.connection.close()
