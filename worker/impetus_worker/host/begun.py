"""Which jobs have begun in a worker's engine, written where the supervisor reads it after any death of the worker.

The note is a file that has no name, inherited by its descriptor: it outlives the worker by a `kill -9`, and both sides
by nothing. Length and checksum come first, so a note that was cut off in the middle reads as empty, and blames nobody.
Then come the lengths of the ids, as numbers of the machine's, and the ids joined: this is written for each batch.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
import threading
import zlib
from array import array
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_HEADER = struct.Struct("<III")
"""Of what follows the length in bytes and the CRC-32, and how many ids it has."""
_LENGTHS = "I"


class BegunNote:
    """One worker process's note: the worker writes, from any thread; its supervisor reads."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._lock = threading.Lock()
        self._begun: tuple[str, ...] = ()
        self._called: list[str] = []
        self._written: tuple[str, ...] = ()

    @classmethod
    def create(cls) -> BegunNote:
        """An empty one, for a supervisor to hand on by `pass_fds=[note.fd]`. Raises `OSError`."""
        if hasattr(os, "memfd_create"):  # Linux: in memory, whatever the disk is full of
            return cls(os.memfd_create("impetus-begun"))
        with tempfile.TemporaryFile(buffering=0) as file:
            return cls(os.dup(file.fileno()))

    @classmethod
    def open(cls, fd: int) -> BegunNote:
        """The one that was inherited as this descriptor; it is not handed on to what the worker starts."""
        os.set_inheritable(fd, False)
        return cls(fd)

    def write(self, job_ids: Iterable[str]) -> None:
        """From now on these have begun, and no others. One system call, and none where nothing changed."""
        with self._lock:
            self._begun = tuple(job_ids)
            self._put()

    @contextlib.contextmanager
    def calling(self, job_id: str) -> Iterator[None]:
        """Meanwhile what this job names runs in the worker's own process. Should that end, it alone is to blame: what
        is in the engine ends no process but that.
        """
        with self._lock:
            self._called.append(job_id)
            self._put()
        try:
            yield
        finally:
            with self._lock:
                self._called.remove(job_id)
                self._put()

    def _put(self) -> None:
        begun = tuple(self._called) or self._begun
        if begun == self._written:
            return
        said = array(_LENGTHS, map(len, begun)).tobytes() + "".join(begun).encode(errors="surrogatepass")
        try:
            written = os.pwrite(self.fd, _HEADER.pack(len(said), zlib.crc32(said), len(begun)) + said, 0)
            if written < _HEADER.size + len(said):
                raise OSError("the note was not written whole")
            self._written = begun
        except OSError:
            # A full disk. What stands there is out of date, and nobody is better than somebody else.
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, 0)
            self._written = ()

    def read(self) -> tuple[str, ...]:
        """What was written last; nothing where that is not whole."""
        try:
            length, checksum, count = _HEADER.unpack(os.pread(self.fd, _HEADER.size, 0))
            said = os.pread(self.fd, length, _HEADER.size)
            if len(said) != length or zlib.crc32(said) != checksum:
                return ()
            lengths = array(_LENGTHS, said[: count * array(_LENGTHS).itemsize])
            joined = said[count * lengths.itemsize :].decode(errors="surrogatepass")
            ends = list(accumulate(lengths))
            return tuple(joined[start:end] for start, end in zip([0, *ends], ends, strict=False))
        except (OSError, struct.error):
            return ()

    def close(self) -> None:
        os.close(self.fd)
