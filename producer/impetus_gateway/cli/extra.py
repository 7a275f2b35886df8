"""Whether what serving needs is installed."""

from __future__ import annotations

from importlib.util import find_spec

from impetus_producer.errors import MissingExtraError

_MODULES = ("httptools", "multipart", "prometheus_client", "standardwebhooks", "starlette", "uvicorn")


def require_extra() -> None:
    """Raises `MissingExtraError`."""
    if any(find_spec(name) is None for name in _MODULES):
        raise MissingExtraError("serving HTTP", "gateway")
