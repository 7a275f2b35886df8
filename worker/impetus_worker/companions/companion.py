"""A thread of the worker's beside its loop. It may wait for others; the loop does not wait for it."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from ..errors import ConfigurationError
from ..inbox import Broken

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)


class Companion:
    """Runs `run()` in a thread until `stop()`. What it raises is told to the loop, as a `Broken`, and ends the worker.

    `run` returns soon once `stopped` is set. A thread that hangs in a call ends with the process.
    """

    def __init__(self, name: str, tell: Callable[[object], None]) -> None:
        self.name = name
        self.tell = tell
        self.stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Asks it to end, and does not wait for it."""
        self.stopped.set()

    def join(self, timeout_s: float) -> bool:
        """Waits for it to end; whether it did."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def run(self) -> None:
        raise NotImplementedError

    def _run(self) -> None:
        try:
            self.run()
        except ConfigurationError as error:
            self.tell(Broken(self.name, error))
        except BaseException as error:  # noqa: BLE001 - told to the loop, which ends the worker
            _log.error("the thread %r ended", self.name, exc_info=True)
            self.tell(Broken(self.name, error))
