"""A real worker on a backend, and what it makes of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from impetus_producer import Producer

from .conftest import small_model

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from impetus_producer.contract import EmbeddingResult

    from ..worker.conftest import Fleet


def embedded_by_a_worker(
    fleet: Fleet, backend: str, texts: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> EmbeddingResult:
    """Of the small BERT. `cache`: where the worker keeps packages."""
    # Workers of tests do not see our own variables.
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    fleet.start("--embedding-backend", backend, "--embedding-model", str(small_model("bge")))
    producer: Producer = Producer(connection=fleet.connection)
    return producer.embed(texts).result(timeout_s=60)
