"""How the worker's processes write their logs: a line each, whatever others wrote into what it says."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from impetus_producer.shown import printable, printable_lines

if TYPE_CHECKING:
    from types import TracebackType

FORMAT_VARIABLE = "IMPETUS_LOG_FORMAT"
"""By which the processes that a worker starts, and those that these start, write as it does."""
FORMATS = ("text", "json")
_ABOUT_A_JOB = "job %s"
"""How every message begins that is about a job."""
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


class OneObject(logging.Formatter):
    """A JSON object a line, in ASCII: time (UTC), level, logger, message, job_id where it is about a job, and traceback
    where there is one.
    """

    def __init__(self, who: str | None) -> None:
        super().__init__()
        self._who = who

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": self._who or record.name,
            "message": record.getMessage(),
        }
        if str(record.msg).startswith(_ABOUT_A_JOB) and isinstance(record.args, tuple):
            said["job_id"] = str(record.args[0])
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)


def set_up(who: str | None = None, level: int = logging.INFO) -> None:
    """To stderr, in the form that `FORMAT_VARIABLE` says. `who`: what stands before each message; the module's name
    unless told otherwise.
    """
    handler = logging.StreamHandler()
    if os.environ.get(FORMAT_VARIABLE) == "json":
        handler.setFormatter(OneObject(who))
    else:
        handler.setFormatter(OneLine(f"%(asctime)s %(levelname)s {who or '%(name)s'}: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
