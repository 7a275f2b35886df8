"""Where the contents of files lie: in a folder, or at any URL that fsspec knows, such as `s3://bucket/path`.

What is written as a batch runs is not among them: lines are appended and locks held in a folder of the machine.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from ..errors import ImpetusError
from ..reading.places.file_systems import as_os_errors, open_file_system
from ..shown import without_password

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO


class Contents(Protocol):
    """By names, each written once. Raises `FileNotFoundError` for a name that is not there."""

    def adopt(self, path: Path, name: str) -> None:
        """Takes in a file, which goes from where it was. May be done again after a crash."""

    def open(self, name: str) -> BinaryIO: ...
    def size(self, name: str) -> int: ...
    def delete(self, name: str) -> None:
        """Also where it is gone already."""


class FolderContents:
    """Beside the objects of the files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def adopt(self, path: Path, name: str) -> None:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.replace(self._folder / name)

    def open(self, name: str) -> BinaryIO:
        return (self._folder / name).open("rb")

    def size(self, name: str) -> int:
        return (self._folder / name).stat().st_size

    def delete(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)


class RemoteContents:
    """At a URL of fsspec. A content is brought here whole before it is read: no batch hangs on a network half way.

    `folder`: for what is being read. Raises `InvalidRequestError` for a URL that fsspec does not know,
    `MissingExtraError` where it is not installed, `ImpetusError` for what a storage answers.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        with self._errors():
            self._storage, self._root = open_file_system(url, f"keeping files at {without_password(url)!r}")
            self._storage.makedirs(self._root, exist_ok=True)

    def adopt(self, path: Path, name: str) -> None:
        with self._errors():
            self._storage.put_file(str(path), self._place(name))
        path.unlink()

    def open(self, name: str) -> BinaryIO:
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".content-") as brought, self._errors():
            self._storage.get_file(self._place(name), brought.name)
            # Some filesystems replace the file that they are given.
            return open(brought.name, "rb")

    def size(self, name: str) -> int:
        with self._errors():
            return int(self._storage.size(self._place(name)))

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError), self._errors():
            self._storage.rm_file(self._place(name))

    def _place(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with as_os_errors():
                yield
        except (FileNotFoundError, ImpetusError):
            raise
        except OSError as error:
            raise ImpetusError(f"{without_password(self._url)!r} cannot be used: {error}") from error
