"""The files of a folder that are documents each, and a count of what else is there."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...bulk.kept.folder import RUN_FOLDER_ENDING
from ...documents import FailedDocument
from ...errors import InvalidRequestError
from ..extracting.whole_files import ENDINGS, WholeFiles

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from ...documents import Read


@dataclass(slots=True)
class Folder:
    """Read in order of name, a folder's own files before those of its sub-folders; the id is the path within it.

    `left_out` counts, by kind, what is no document: files with other endings, hidden ones, and links: to folders, and
    to files outside of this folder, unless `follow_links`.
    """

    path: Path
    left_out: Counter[str]
    files: WholeFiles = field(default_factory=WholeFiles)
    follow_links: bool = False
    file: str | None = None
    _seen: set[tuple[int, int]] = field(default_factory=set)

    def check(self) -> None:
        """Raises `InvalidRequestError` where there is nothing to read."""
        if next(self._files(), None) is None:
            raise InvalidRequestError(
                f"there are no text files in the folder {str(self.path)!r}: looked for "
                f"{', '.join(sorted(ENDINGS))}{'; left out ' + told(self.left_out) if self.left_out else ''}"
            )
        self.left_out.clear()

    def count(self) -> int:
        counted = sum(1 for _ in self._files())
        self.left_out.clear()
        return counted

    def documents(self) -> Iterator[Read]:
        row = 1
        for found in self._files():
            if isinstance(found, OSError):
                path = Path(os.fsdecode(found.filename))
                yield FailedDocument(
                    self._name(path), f"the folder cannot be read: {found.strerror}", row, self.file, retryable=True
                )
                row += 1
                continue
            for document in self.files.documents(found, self._name(found), row, self.file):
                yield document
                row += 1

    def _name(self, path: Path) -> str:
        within = _printable(path.relative_to(self.path))
        return within if self.file is None else f"{self.file.rstrip('/')}/{within}"

    def _files(self) -> Iterator[Path | OSError]:
        self._seen = set()
        inside = os.path.realpath(self.path) + os.sep
        unreadable: list[OSError] = []
        for at, folders, files in os.walk(self.path, onerror=unreadable.append, followlinks=self.follow_links):
            yield from unreadable
            unreadable.clear()
            folders[:] = sorted(name for name in folders if self._enters(at, name))
            for name in sorted(files):
                path, ending = Path(at, name), os.path.splitext(name)[1].lower()
                if name.startswith("."):
                    self.left_out["hidden"] += 1
                elif ending not in ENDINGS:
                    self.left_out[ending or "without an ending"] += 1
                elif not self.files.reads(path):
                    self.left_out[f"{ending} (which the 'documents' extra reads)"] += 1
                elif not self.follow_links and path.is_symlink() and not os.path.realpath(path).startswith(inside):
                    self.left_out["links out of the folder"] += 1
                else:
                    yield path
        yield from unreadable

    def _enters(self, at: str, name: str) -> bool:
        path = os.path.join(at, name)
        if name.startswith("."):
            self.left_out["hidden"] += 1
            return False
        if name.endswith(RUN_FOLDER_ENDING):
            self.left_out["folders of runs"] += 1
            return False
        if not os.path.islink(path):
            return True
        if not self.follow_links:
            self.left_out["linked folders"] += 1
            return False
        # A link to a folder above it would be followed for ever.
        status = os.stat(path)
        inside_itself = os.path.join(os.path.realpath(at), "").startswith(os.path.join(os.path.realpath(path), ""))
        is_new = (status.st_dev, status.st_ino) not in self._seen
        self._seen.add((status.st_dev, status.st_ino))
        return is_new and not inside_itself


def told(left_out: Counter[str]) -> str:
    """`3 .pdf, 2 hidden`, the most frequent first, and of those that are as frequent in the order of the alphabet."""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {kind}" for kind, count in ordered)


def _printable(path: Path) -> str:
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")
