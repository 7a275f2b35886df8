"""SQLite files of ours: opened so that a process killed at any moment loses nothing that was committed."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...errors import ImpetusError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

_APPLICATION_ID = 0x1391
_VERSION = 1
_BUSY_S = 60.0
_PAGE_BYTES = 16_384
"""Rows of some kilobytes fill these well: half again as many are written in a second as with SQLite's 4,096."""
NO_ROOM = "the disk or a quota is full, or a file may not become larger (ulimit -f): make room"
NO_ROOM_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_ROOM_NAMES = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_TRUNCATE"})
"""What SQLite makes of those: https://www.sqlite.org/rescode.html."""


def open_database(path: Path, schema: str) -> sqlite3.Connection:
    """The file with these tables, made where it is not there. For one thread at a time.

    `with database:` is a transaction, from the first that is written in it. It is the module's own, which no signal
    can leave open, as one may strike within the `__enter__` of ours: https://bugs.python.org/issue29988.

    Raises `ImpetusError` for a file that is no database of ours.
    """
    import sqlite3

    with database_errors(path):
        database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level="IMMEDIATE", check_same_thread=False)
        try:
            _prepare(database, path, schema)
        except BaseException:
            database.close()
            raise
    return database


def _prepare(database: sqlite3.Connection, path: Path, schema: str) -> None:
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    ((ours,), (version,)) = (
        database.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
    )
    if tables and ours != _APPLICATION_ID:
        raise ImpetusError(f"{str(path)!r} is another program's database: give another name")
    if tables and version != _VERSION:
        raise ImpetusError(f"{str(path)!r} was written by another version of Impetus: give another name")
    if not tables:
        database.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
    # What was committed survives this process; of a loss of power the last moments may be lost, and nothing is torn.
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    with database:
        database.execute("BEGIN IMMEDIATE")
        database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {_VERSION}")
        for statement in schema.split(";"):
            database.execute(statement)


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    import sqlite3

    try:
        yield
    except sqlite3.Error as error:
        # Errors of the module itself, such as of a closed database, have no name.
        if getattr(error, "sqlite_errorname", None) in _NO_ROOM_NAMES:
            raise ImpetusError(f"{str(path)!r} cannot be written: {NO_ROOM}; what was kept before stays") from error
        raise ImpetusError(f"{str(path)!r} cannot be read or written: {error}") from error
