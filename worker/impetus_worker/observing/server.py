"""Where Prometheus scrapes what this machine's workers count: `http://HOST:PORT/metrics`, in the supervisor's process.

The workers keep their counts in files (`metrics`), so that one that died is still counted, and this sums them up.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impetus_producer.errors import MissingExtraError

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_LIVE = re.compile(r"gauge_live\w*_(\d+)\.db")


@contextlib.contextmanager
def metrics_server(address: str | None) -> Iterator[None]:
    """Serves at HOST:PORT for as long as the block lasts, to the workers that are started in it; without an address
    there is nothing to serve. Raises `ConfigurationError` where that port is not to be had.
    """
    if address is None:
        yield
        return
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        raise MissingExtraError("--metrics-port", "metrics") from None
    host, _, port = address.rpartition(":")
    with tempfile.TemporaryDirectory(prefix="impetus-metrics-") as folder:
        registry = CollectorRegistry()
        registry.register(_OfAllProcesses(Path(folder)))
        try:
            server, thread = start_http_server(int(port), host, registry)
        except OSError as error:
            raise ConfigurationError(f"metrics cannot be served at {address}: {error.strerror}") from None
        os.environ[_FOLDER_VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[_FOLDER_VARIABLE]
            server.shutdown()
            server.server_close()
            thread.join()


class _OfAllProcesses:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Any:
        from prometheus_client import CollectorRegistry, multiprocess

        library: Any = multiprocess  # which is not typed
        for file in self._folder.iterdir():
            if (found := _LIVE.fullmatch(file.name)) and not _lives(int(found[1])):
                library.mark_process_dead(int(found[1]), str(self._folder))
        # One of its own for each scrape, as it would register itself with the other.
        return library.MultiProcessCollector(CollectorRegistry(), str(self._folder)).collect()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
