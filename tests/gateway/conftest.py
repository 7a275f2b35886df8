"""One server, worker and gateway a module, as starting them takes longer than most of its tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.patience import eventually

from .serving import Serving, is_ready, serving, workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import RedisServer
    from tests.worker.conftest import Fleet


@pytest.fixture(scope="module")
def worker_options() -> tuple[str, ...]:
    """What a module's worker is started with; a module may say otherwise."""
    return ()


@pytest.fixture(scope="module")
def fleet(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory, worker_options: tuple[str, ...]
) -> Iterator[Fleet]:
    with workers(redis_server.url, tmp_path_factory.mktemp("workers"), *worker_options) as running:
        yield running


@pytest.fixture(scope="module")
def served(fleet: Fleet) -> Iterator[Serving]:
    with serving(fleet.url) as running:
        eventually(lambda: is_ready(running, "embedding", "generation"))
        yield running
