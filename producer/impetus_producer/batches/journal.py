"""The two files that a batch's answers are appended to as they end, and from which a run goes on that died.

A line counts when it is whole and on the disk, and then for good: what was appended is never asked for again. Whoever
opens a journal holds its lock, and so is the only one on this machine.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from pydantic_core import to_json

from ..errors import ImpetusError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import BinaryIO

    from ..bodies.refusals import Refusal

_LAST = 1024
"""More than any window."""
_LINE = re.compile(rb'\{"id":"batch_req_([0-9a-f]+)","custom_id":("(?:[^"\\]|\\.)*"),')


class LockedError(ImpetusError):
    """Another process has the journal."""


class Journal:
    """`output` holds the answers, `errors` why there is none; either is there only once it has a line.

    `anew`: what is there goes. Raises `LockedError`, `InvalidRequestError` for a file that no batch wrote.
    """

    def __init__(self, output: Path, errors: Path, lock: Path, *, anew: bool = False) -> None:
        self.output = output
        self.errors = errors
        self.done: set[str] = set()
        """The `custom_id`s of all lines that are there."""
        self.last_job_ids: list[str] = []
        """Of the lines that were there: what Redis holds of them may not have been deleted."""
        self._files: dict[Path, BinaryIO] = {}
        with _disk_errors(output), ExitStack() as opened:
            held = opened.enter_context(lock.open("ab"))
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(f"another process is writing {str(output)!r}: let it, or end it") from None
            for path in (output, errors) if anew else ():
                path.unlink(missing_ok=True)
            self.completed = self._read(output)
            self.failed = self._read(errors)
            self._opened = opened.pop_all()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives up the lock."""
        for file in self._files.values():
            with suppress(OSError):  # what a full disk did not take
                file.close()
        self._opened.close()

    def _read(self, path: Path) -> int:
        """Notes whose lines are in a file, and cuts off one that its writer did not finish."""
        count = whole = 0
        last: deque[bytes] = deque(maxlen=_LAST)
        try:
            with path.open("r+b") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        file.truncate(whole)
                        break
                    whole += len(line)
                    job_id, custom_id = _ids(path, line)
                    last.append(job_id)
                    self.done.add(custom_id)
                    count += 1
        except FileNotFoundError:
            return 0
        self.last_job_ids += [job_id.decode() for job_id in last]
        return count

    def append(self, entries: Sequence[Entry]) -> None:
        """On the disk when it returns. Raises `ImpetusError` where the disk takes no more; then do not go on."""
        for path, answered in ((self.output, True), (self.errors, False)):
            of_this = [entry for entry in entries if entry.answered == answered]
            if not of_this:
                continue
            with _disk_errors(path):
                file = self._file(path)
                file.writelines(entry.line for entry in of_this)
                file.flush()
                os.fsync(file.fileno())
            self.done.update(entry.custom_id for entry in of_this)
            if answered:
                self.completed += len(of_this)
            else:
                self.failed += len(of_this)

    def _file(self, path: Path) -> BinaryIO:
        if path not in self._files:
            self._files[path] = path.open("ab")
        return self._files[path]


class Entry:
    """What became of one request, as a line of one of the two files."""

    __slots__ = ("answered", "custom_id", "line")

    def __init__(self, custom_id: str, job_id: str, response: bytes, error: bytes, *, answered: bool) -> None:
        self.custom_id = custom_id
        self.answered = answered
        head = b'{"id":"batch_req_%s","custom_id":%s,' % (job_id.encode(), to_json(custom_id))
        self.line = b'%s"response":%s,"error":%s}\n' % (head, response, error)

    @classmethod
    def answer(cls, custom_id: str, job_id: str, body: bytes) -> Entry:
        """An answer, `body` as JSON."""
        return cls(custom_id, job_id, _response(200, job_id, body), b"null", answered=True)

    @classmethod
    def refusal(cls, custom_id: str, job_id: str, refusal: Refusal) -> Entry:
        """That it was asked, and why there is no answer."""
        body = to_json(refusal.body())
        return cls(custom_id, job_id, _response(refusal.status, job_id, body), b"null", answered=False)

    @classmethod
    def never_asked(cls, custom_id: str, job_id: str, code: str, message: str) -> Entry:
        error = to_json({"code": code, "message": message})
        return cls(custom_id, job_id, b"null", error, answered=False)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, ImpetusError):
            raise
        raise ImpetusError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error


def _response(status: int, job_id: str, body: bytes) -> bytes:
    return b'{"status_code":%d,"request_id":"%s","body":%s}' % (status, job_id.encode(), body)


def _ids(path: Path, line: bytes) -> tuple[bytes, str]:
    if (match := _LINE.match(line)) is None:
        raise InvalidRequestError(f"{str(path)!r} is there and no batch wrote it: give another name")
    return match[1], json.loads(match[2])
