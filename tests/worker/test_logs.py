"""A line of the log is a line, whatever others wrote into it."""

from __future__ import annotations

import logging
import sys

from impetus_worker.logs import OneLine

FORGED = "x\n2026-01-01 INFO forged \x1b[31m"


def line(message: str, *arguments: object, exception: bool = False) -> str:
    record = logging.LogRecord("n", logging.INFO, "f", 1, message, arguments, sys.exc_info() if exception else None)
    return OneLine("%(levelname)s: %(message)s").format(record)


def test_what_a_job_chose_begins_no_line_and_moves_no_cursor() -> None:
    assert line("job %s failed", FORGED) == "INFO: job x\\n2026-01-01 INFO forged \\x1b[31m failed"


def test_a_traceback_has_its_lines_indented_and_moves_no_cursor_either() -> None:
    try:
        raise ValueError(FORGED)
    except ValueError:
        first, *others = line("it went wrong", exception=True).splitlines()
    assert first == "INFO: it went wrong"
    assert others[0] == "    Traceback (most recent call last):"
    assert others[-1] == "    2026-01-01 INFO forged \\x1b[31m"
    assert all(each.startswith("    ") for each in others)
