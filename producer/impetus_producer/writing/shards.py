"""Output in a folder of several files, of so many rows each: `00000.parquet`, `00001.parquet`, …"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidRequestError
from .drafts import set_aside
from .sinks import Sink

if TYPE_CHECKING:
    from .formats import VectorFile
    from .rows import Layout, Rows

_NAME = re.compile(r"\d{5,}\.")


class Shards(Sink):
    """Appears as a whole, in the place of an earlier run's."""

    def __init__(self, path: Path, drafts: Path, layout: Layout, make: type[VectorFile], rows_per_file: int) -> None:
        self._path, self._drafts, self._layout, self._make = path, drafts, layout, make
        self._rows_per_file = rows_per_file
        self._folder = drafts / path.name
        self._folder.mkdir()
        self._count = self._room = 0
        self._file: VectorFile | None = None

    @staticmethod
    def require() -> None:
        """What it takes is asked of the kind of file."""

    @staticmethod
    def check_place(path: Path) -> None:
        """Raises `InvalidRequestError` where something else is."""
        if not path.exists():
            return
        others = [name for name in os.listdir(path) if not _NAME.match(name)] if path.is_dir() else [path.name]
        if others:
            raise InvalidRequestError(f"{str(path)!r} is there and no folder of an earlier run: give another name")

    def write(self, rows: Rows) -> None:
        start = 0
        while start < len(rows.documents):
            if self._file is None:
                path = self._folder / f"{self._count:05}{self._path.suffix}"
                self._file = self._make(path, self._drafts, self._layout)
                self._count, self._room = self._count + 1, self._rows_per_file
            end = min(len(rows.documents), start + self._room)
            self._file.write(rows.part(start, end))
            self._room -= end - start
            start = end
            if not self._room:
                self.finish()

    def finish(self) -> None:
        if self._file is not None:
            self._file.finish()
            self._file.publish()
            self.close()

    def publish(self) -> None:
        target = Path(os.path.realpath(self._path))
        if target.exists():
            # Goes with the drafts.
            target.rename(self._drafts / "before")
        self._folder.rename(target)

    def set_aside(self) -> Path | None:
        return set_aside(self._path)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
