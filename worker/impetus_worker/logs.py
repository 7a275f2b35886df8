"""How the worker's processes write their logs: a line each, whatever others wrote into what it says."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from impetus_producer.shown import printable, printable_lines

if TYPE_CHECKING:
    from types import TracebackType

_CHATTY = ("rq.worker", "rq.job", "rq.scheduler", "httpx", "httpx2")


class OneLine(logging.Formatter):
    """Job ids, field names and what errors quote are chosen by whoever enqueues: none of it begins a line or moves a
    cursor. The lines of a traceback are indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(  # noqa: N802 - the library's name
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        return f"    {printable_lines(super().formatException(ei))}"


def set_up(who: str = "%(name)s", level: int = logging.INFO) -> None:
    """To stderr. `who`: what stands before each message; the module's name unless told otherwise."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine(f"%(asctime)s %(levelname)s {who}: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
