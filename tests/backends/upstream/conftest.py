"""A scripted upstream, and engines that forward to it; all end with the test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.engine_config import EngineConfig
from impetus_backends.upstream.engine import UpstreamEngine, open_upstream

from ..scripted_server import ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from impetus_backends.upstream.exchange import Patience


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def make_engine(server: ScriptedServer) -> Iterator[Callable[..., UpstreamEngine]]:
    engines: list[UpstreamEngine] = []

    def make(patience: Patience | None = None, **changes: Any) -> UpstreamEngine:
        config = EngineConfig("generation", backend="openai", upstream=server.url, **changes)
        engines.append(open_upstream(config, patience=patience))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
