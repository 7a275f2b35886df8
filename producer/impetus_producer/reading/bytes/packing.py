"""Files that are compressed as a whole: .gz, and .zst where a library for it is there.

Knows decompressors. Knows no text.
"""

from __future__ import annotations

import io
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ...errors import MissingExtraError

if TYPE_CHECKING:
    from ..places.remote import Readable

PACKINGS = (".gz", ".zst")
_AT_ONCE_BYTES = 1 << 14


class DamagedError(OSError):
    """Compressed data that are damaged, or end too early."""


def unpacked(file: BinaryIO, path: Readable) -> BinaryIO:
    """What `file` holds, by the ending of its name. Reading it raises `DamagedError`."""
    packing = path.suffix.lower()
    if packing not in PACKINGS:
        return file
    inner, damage = _gzip(file) if packing == ".gz" else _zstandard(file)
    return io.BufferedReader(_Unpacked(inner, damage), 1 << 18)


def _gzip(file: BinaryIO) -> tuple[Any, tuple[type[Exception], ...]]:
    import gzip

    return gzip.GzipFile(fileobj=file), (EOFError, zlib.error, gzip.BadGzipFile)


def _zstandard(file: BinaryIO) -> tuple[Any, tuple[type[Exception], ...]]:
    """By Python's own module, `zstandard` or pyarrow."""
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        pass
    else:
        return zstd.ZstdFile(file), (EOFError, zstd.ZstdError)
    try:
        import zstandard  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        pass
    else:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        return reader, (EOFError, zstandard.ZstdError)
    try:
        import pyarrow
    except ImportError:
        raise MissingExtraError("Reading .zst", "files") from None
    source = pyarrow.PythonFile(file, "r")
    return pyarrow.CompressedInputStream(source, "zstd"), (OSError, pyarrow.ArrowException)


class _Unpacked(io.RawIOBase):
    """Gives all that comes before what is damaged, and then that it is, however often it is asked."""

    def __init__(self, inner: Any, damage: tuple[type[Exception], ...]) -> None:
        # Some at a time where they can: what is asked for with the damage is lost with it.
        self._read = getattr(inner, "read1", inner.read)
        self._damage = damage
        self._found: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._found is None:
            try:
                data = cast("bytes", self._read(min(len(buffer), _AT_ONCE_BYTES)))
            except self._damage as error:
                self._found = error
            else:
                buffer[: len(data)] = data
                return len(data)
        raise DamagedError("the compressed data are damaged or end too early") from self._found
