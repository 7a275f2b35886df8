"""The gateway's servers, for programs that use it."""

from tests.gateway.conftest import fleet, served, worker_options

__all__ = ["fleet", "served", "worker_options"]
