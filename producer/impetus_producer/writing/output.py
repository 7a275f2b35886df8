"""What a run writes: a file of vectors, and a list of the documents that have none.

Knows files. Knows no Redis, no job, no input.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..documents import Document, FailedDocument
from ..errors import InvalidRequestError
from ..kept.folder import RunFolder
from .drafts import Draft
from .formats import FORMATS, VectorFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from ..bulk import EmbeddedDocument
    from ..documents import Read


class Output(AbstractContextManager["Output"]):
    """The vectors' file and `<file>.errors.jsonl`, the list of the documents that have none.

    Both appear when the `with` block ends without an exception; after one, neither is touched. Where no document
    failed there is no list, not even an earlier run's. Where no document has a vector there is no vectors' file: an
    earlier run's is renamed to `<file>.before`, and `set_aside` is that name.

    `folder` is this run's alone. What others put there stays after an exception, and where something is worth trying
    again.
    """

    def __init__(
        self, path: Path, make_vectors: type[VectorFile], columns: Mapping[str, Any], with_files: bool
    ) -> None:
        self.path = path
        self.errors_path = path.with_name(path.name + ".errors.jsonl")
        self.holds_text_ids_only = make_vectors.holds_text_ids_only
        self.set_aside: Path | None = None
        self.written = self.failed = self.retryable = 0
        self.first_failure: FailedDocument | None = None
        with ExitStack() as opened:
            self.folder = RunFolder(path)
            opened.callback(self.folder.close, done=False)
            self._errors = Draft(self.errors_path, self.folder.drafts, like=path)
            opened.callback(self._errors.close)
            self._vectors = make_vectors(path, self.folder.drafts, columns, with_files)
            opened.callback(self._vectors.close)
            self._opened = opened.pop_all()

    def write(self, outcome: EmbeddedDocument | FailedDocument, read: Read) -> None:
        """What became of a document that was read."""
        if isinstance(outcome, FailedDocument):
            self._write_failed(outcome, read)
        else:
            assert isinstance(read, Document)
            self._vectors.write(outcome, read)
            self.written += 1

    def _write_failed(self, outcome: FailedDocument, read: Read) -> None:
        record = {
            "line": read.row,
            **({"file": read.file} if read.file is not None else {}),
            "id": outcome.id,
            "reason": outcome.reason,
            "retryable": outcome.retryable,
        }
        self._errors.file.write(json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
        self.first_failure = self.first_failure or outcome
        self.failed += 1
        self.retryable += outcome.retryable

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._opened:
            if error is None:
                self._publish()
                self.folder.close(done=not self.retryable)

    def _publish(self) -> None:
        if self.written:
            self._vectors.finish()
        elif self.failed:
            self.set_aside = self._vectors.set_aside()
        if self.failed:
            self._errors.publish()
        else:
            self.errors_path.unlink(missing_ok=True)
        if self.written:
            self._vectors.publish()


def open_output(name: str, *, columns: Mapping[str, Any] | None = None, with_files: bool = False) -> Output:
    """Gets ready to write `name`. Raises one clear sentence now for what would fail at the end.

    `columns`: the further values of each document, in its order, and their Arrow types where those are known, else
    None. `with_files`: whether to write which input each document is from.
    """
    path = Path(name)
    make = FORMATS.get(path.suffix.lower())
    if make is None:
        raise InvalidRequestError(f"{name!r} must end in one of {', '.join(FORMATS)}: the ending chooses the format")
    make.require()
    if path.is_dir():
        raise InvalidRequestError(f"{name!r} is a folder: give a file")
    make.check_columns(tuple(columns or ()))
    try:
        return Output(path, make, columns or {}, with_files)
    except OSError as error:
        where = path.parent
        problem = "there is no such folder" if not where.is_dir() else error.strerror
        raise InvalidRequestError(f"nothing can be written in {str(where)!r}: {problem}") from None
