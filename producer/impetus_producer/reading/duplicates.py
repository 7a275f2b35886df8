"""Which ids came before, however many there are: they are kept in a temporary database, which spills to the disk.

Knows documents. Knows no file of theirs.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from ..documents import Document, FailedDocument
from ..errors import ImpetusError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..documents import DocumentId, Read

OnDuplicate = Literal["keep", "fail", "last"]
_NAMED = 5
_CACHE_KIB = 16_384


class Ids:
    """The ids met so far. `as_text`: 0 and "0" are one id, because the output holds no other than strings."""

    def __init__(self, policy: OnDuplicate, as_text: bool = False) -> None:
        import sqlite3

        self._policy = policy
        self._as_text = as_text
        self.repeated: dict[str, int] = {}
        """The first few ids that occur more than once, as JSON would write them, and how often."""
        self.repeated_ids = 0
        # A database without a name is a temporary file without one: it is gone when this process is.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._database.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, row, file, times INTEGER) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def close(self) -> None:
        self._database.close()

    def checked(self, documents: Callable[[], Iterable[Read]]) -> Iterator[Read]:
        """The documents, those whose id is another one's treated by the policy. For `last` they are read twice."""
        with _database_errors():
            if self._policy == "last":
                for document in documents():
                    if isinstance(document, Document) and document.id is not None:
                        self._note(document)
                yield from (document for document in documents() if self._is_last(document))
                return
            for document in documents():
                first = self._note(document) if isinstance(document, Document) and document.id is not None else None
                if first is None or self._policy == "keep":
                    yield document
                else:
                    reason = f"row {document.row}: the id {_shown(document.id)} is already that of {first}"
                    yield FailedDocument(document.id, reason, document.row, document.file)

    def _note(self, document: Document) -> str | None:
        """Where the id occurred first, if this is not the first time."""
        key = self._key(document.id)
        insert = "INSERT INTO ids VALUES (?, ?, ?, 1) ON CONFLICT DO NOTHING"
        if self._database.execute(insert, (key, document.row, document.file)).rowcount:
            return None
        row, file, times = self._database.execute("SELECT row, file, times FROM ids WHERE id = ?", (key,)).fetchone()
        if self._policy == "last":
            row, file = document.row, document.file
        self._database.execute("UPDATE ids SET times = ?, row = ?, file = ? WHERE id = ?", (times + 1, row, file, key))
        shown = _shown(document.id)
        self.repeated_ids += times == 1
        if shown in self.repeated or len(self.repeated) < _NAMED:
            self.repeated[shown] = times + 1
        return f"row {row}" + (f" of {file}" if file else "")

    def _is_last(self, document: Read) -> bool:
        if not isinstance(document, Document) or document.id is None:
            return True
        found = self._database.execute("SELECT row, file FROM ids WHERE id = ?", (self._key(document.id),)).fetchone()
        return bool(found == (document.row, document.file))

    def _key(self, document_id: DocumentId) -> str:
        return str(document_id) if self._as_text or isinstance(document_id, str) else f"\0{document_id}"

    def sentence(self) -> str | None:
        """What the summary says of them."""
        if not self.repeated_ids:
            return None
        named = ", ".join(f"{shown} {times:,} times" for shown, times in self.repeated.items())
        more = f" and {self.repeated_ids - len(self.repeated):,} more" if self.repeated_ids > len(self.repeated) else ""
        count = "1 id occurs" if self.repeated_ids == 1 else f"{self.repeated_ids:,} ids occur"
        done = {
            "keep": "all were kept; --on-duplicate fail or last does otherwise",
            "fail": "all but the first failed",
            "last": "all but the last were left out",
        }
        return f"{count} more than once: {named}{more}; {done[self._policy]}."


def _shown(document_id: DocumentId) -> str:
    return repr(document_id) if isinstance(document_id, str) else str(document_id)


@contextmanager
def _database_errors() -> Iterator[None]:
    import sqlite3

    try:
        yield
    except sqlite3.Error as error:
        folder = os.environ.get("SQLITE_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
        raise ImpetusError(f"the ids met so far could not be kept in {folder}: {error}; make room there") from error
