"""Files of other machines by URL, such as `hf://datasets/me/docs/*.parquet`."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

from ...errors import InvalidRequestError
from ...shown import without_password
from .file_systems import as_os_errors, open_file_system

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file by its URL. Of a `Path` it has what reading takes."""

    url: str
    _system: Any
    _path: str

    def __str__(self) -> str:
        return without_password(self.url)

    @property
    def suffix(self) -> str:
        return PurePosixPath(self._path).suffix

    @property
    def suffixes(self) -> list[str]:
        return PurePosixPath(self._path).suffixes

    def open(self, mode: str) -> BinaryIO:
        with as_os_errors():
            file = self._system.open(self._path, mode)
        return cast("BinaryIO", io.BufferedReader(_Remote(file), _BLOCK_BYTES))


Readable: TypeAlias = "Path | RemoteFile"


def is_url(name: str) -> bool:
    return "://" in name


def remote_files(url: str) -> list[RemoteFile]:
    """The file of this URL, or those that its pattern matches, in order of name.

    Raises `InvalidRequestError` where there is none, and for a folder; `MissingExtraError`.
    """
    shown = without_password(url)
    try:
        system, path = open_file_system(url, "Reading from a URL")
        with as_os_errors():
            # A `?` in a URL asks something of a web server, and matches nothing.
            if any(sign in path for sign in "*["):
                paths = sorted(each for each in system.glob(path) if not system.isdir(each))
                return [RemoteFile(_named(system, each), system, each) for each in _some(paths, shown)]
            if system.isdir(path):
                raise InvalidRequestError(f"{shown!r} is a folder: name its files, such as '{shown.rstrip('/')}/*'")
    except OSError as error:
        raise InvalidRequestError(f"{shown!r} cannot be read: {error.strerror or error}") from None
    return [RemoteFile(url, system, path)]


def _some(paths: list[str], url: str) -> list[str]:
    if not paths:
        raise InvalidRequestError(f"no file matches the pattern {url!r}")
    return paths


def _named(system: Any, path: str) -> str:
    return str(system.unstrip_protocol(path))


class _Remote(io.RawIOBase):
    """A file of fsspec's."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        with as_os_errors():
            data: bytes = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        with as_os_errors():
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
