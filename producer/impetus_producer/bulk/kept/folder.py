"""The folder beside an output in which a run keeps what it has until the output is whole: `OUT.impetus`.

Knows files and locks. Knows no document.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

from ...errors import ImpetusError, InvalidRequestError

RUN_FOLDER_ENDING = ".impetus"
_LOCK = "lock"
_DRAFTS = "drafts"


class RunFolder:
    """One run's, as long as it lasts: two at once would overwrite each other's output.

    Raises `ImpetusError` where another run has it. What a dead run left is there to be gone on with, but for its
    drafts, which are removed.
    """

    def __init__(self, out: Path) -> None:
        target = Path(os.path.realpath(out))
        self.out = out
        self.path = target.with_name(target.name + RUN_FOLDER_ENDING)
        self._lock = self._locked()
        self.drafts = self.path / _DRAFTS
        shutil.rmtree(self.drafts, ignore_errors=True)
        self.drafts.mkdir(mode=0o700)

    def _locked(self) -> int:
        while True:
            with suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            if not self.path.is_dir() or (os.listdir(self.path) and not (self.path / _LOCK).exists()):
                raise InvalidRequestError(f"{str(self.path)!r} is there and none of ours: move it, or name another OUT")
            try:
                lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
            except FileNotFoundError:  # who had it ended just now, and removed it
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                other = os.read(lock, 20).decode(errors="replace").strip() or "?"
                os.close(lock)
                raise ImpetusError(
                    f"another run (process {other}) is writing {str(self.out)!r}: wait until it has ended, or name "
                    "another OUT"
                ) from None
            if self._is_current(lock):
                os.truncate(lock, 0)
                os.pwrite(lock, str(os.getpid()).encode(), 0)
                return lock
            os.close(lock)

    def _is_current(self, lock: int) -> bool:
        """Whether the file that was locked is still the one under its name."""
        try:
            return os.path.samestat(os.fstat(lock), os.stat(self.path / _LOCK))
        except FileNotFoundError:
            return False

    @property
    def is_kept(self) -> bool:
        """Whether there is anything to be gone on with, once it is closed."""
        return self.path.exists()

    def clear(self) -> None:
        """Forgets what earlier runs left."""
        for entry in self.path.iterdir():
            if entry.name not in (_LOCK, _DRAFTS):
                # SQLite itself takes the files beside a database away, with the last who reads it.
                entry.unlink(missing_ok=True)

    def close(self, *, done: bool) -> None:
        """Lets others have it. What there is to be gone on with stays, unless the run is `done`."""
        if self._lock < 0:
            return
        shutil.rmtree(self.drafts, ignore_errors=True)
        if done or os.listdir(self.path) == [_LOCK]:
            # The lock goes last, and while it is ours.
            with suppress(OSError):
                self.clear()
                (self.path / _LOCK).unlink()
                self.path.rmdir()
        os.close(self._lock)
        self._lock = -1
