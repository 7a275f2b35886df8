"""What an interrupted run of `impetus embed` keeps beside its output, looked at while it runs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def answers_kept(output: Path) -> int:
    """How many answers the run that writes this output has kept so far."""
    kept = output.with_name(f"{output.name}.impetus") / "answers.sqlite"
    if not kept.exists():
        return 0
    with closing(sqlite3.connect(f"file:{kept}?mode=ro", uri=True)) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM answers").fetchone()[0])
        except sqlite3.OperationalError:  # it is just being made
            return 0
