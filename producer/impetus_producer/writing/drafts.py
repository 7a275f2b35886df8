"""A file that appears under its name when it is whole, and not before.

Until then it is a draft in the run's folder, which nobody else can read and which removes it. A link stays a link, and
whoever might not read the file before may not read it after.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO

from ..errors import InvalidRequestError


class Draft:
    """`folder`: where it is until then. `like`: the file whose permissions a new one takes, where that is there; else
    they are the usual ones."""

    def __init__(self, path: Path, folder: Path, like: Path | None = None) -> None:
        self._target = Path(os.path.realpath(path))
        self._mode = _mode_of(self._target)
        if self._mode is None and like is not None and like.is_file():
            self._mode = _mode_of(Path(os.path.realpath(like)))
        self._draft = folder / self._target.name
        self.file: IO[bytes] = self._draft.open("x+b")

    def publish(self) -> None:
        self.file.flush()
        if self._mode is not None:
            os.fchmod(self.file.fileno(), self._mode)
        os.fsync(self.file.fileno())
        self.file.close()
        try:
            self._draft.replace(self._target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # OUT is a link to another file system, and this goes beside the link.
            near = self._target.with_name(f".{self._target.name}.{os.getpid()}")
            shutil.copy(self._draft, near)
            near.replace(self._target)

    def close(self) -> None:
        # Closing flushes, which fails again on a full disk.
        with suppress(OSError, ValueError):
            self.file.close()


def _mode_of(path: Path) -> int | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise InvalidRequestError(f"{str(path)!r} is there and no regular file: give another name")
    return stat.S_IMODE(status.st_mode)


def set_aside(path: Path) -> Path | None:
    """Renames an earlier run's file, so that nobody takes it for this one's. None where there is none."""
    aside = path.with_name(path.name + ".before")
    if aside.is_dir():
        shutil.rmtree(aside)
    try:
        path.replace(aside)
    except FileNotFoundError:
        return None
    return aside
