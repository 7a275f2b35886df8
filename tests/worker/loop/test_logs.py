"""A line of the log is a line, whatever others wrote into it."""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING

import pytest

from impetus_producer.contract import EMBED_FUNCTION
from impetus_worker.logs import OneLine, OneObject
from tests.patience import eventually

if TYPE_CHECKING:
    from ..conftest import Fleet

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


@pytest.mark.system
def test_in_json_each_message_is_an_object_on_a_line_that_names_its_job(fleet: Fleet) -> None:
    worker = fleet.start("--log-format", "json")
    job = fleet.queue().enqueue(EMBED_FUNCTION, {"input": FORGED, "dimensions": -1})
    eventually(lambda: fleet.status(job) == "failed")
    worker.stop()
    server, *lines = worker.log.splitlines()
    assert server.startswith("server: ")  # standard output's
    said = [json.loads(each) for each in lines]
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, said))
    assert [each["level"] for each in said if each.get("job_id") == job.id] == ["warning"]
    assert any("traceback" not in each and "serves embedding" in each["message"] for each in said)


def test_in_json_a_traceback_is_one_string_and_what_a_job_chose_is_quoted() -> None:
    try:
        raise ValueError(FORGED)
    except ValueError:
        record = logging.LogRecord("n", logging.ERROR, "f", 1, "job %s: it broke", (FORGED,), sys.exc_info())
    line = OneObject("engine").format(record)
    assert line.isascii()
    assert "\n" not in line
    said = json.loads(line)
    assert (said["logger"], said["job_id"], said["level"]) == ("engine", FORGED, "error")
    assert said["traceback"].startswith("Traceback")
