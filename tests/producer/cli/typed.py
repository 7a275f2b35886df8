"""The `impetus` command as a test types it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from click.testing import CliRunner

from impetus_producer.cli.main import cli

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

PROGRAM = [sys.executable, "-m", "impetus_producer"]


def run(*arguments: str, url: str | None = None, stdin: bytes | None = None) -> Result:
    environment = {"IMPETUS_REDIS_URL": url}
    return CliRunner().invoke(cli, arguments, input=stdin, env=environment)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def all_of(terminal: int) -> bytes:
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(terminal)
    return shown
