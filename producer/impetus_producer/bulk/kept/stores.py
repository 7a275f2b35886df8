"""Stores by their names: a file, or the URL of a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .remote_store import RedisStore
from .store import Store

if TYPE_CHECKING:
    from .store import AnswerStore


def open_store(name: str, *, patience_s: float | None = None) -> AnswerStore:
    """Raises `ImpetusError`. `patience_s`: how long a server that is away is waited for."""
    return RedisStore(name, patience_s=patience_s) if "://" in name else Store(name)
