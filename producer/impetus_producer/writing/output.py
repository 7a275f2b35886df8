"""What a run writes: a file of vectors, and a list of the documents that have none.

Knows files. Knows no Redis, no job, no input.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..documents import Document, FailedDocument
from ..errors import ImpetusError, InvalidRequestError
from ..kept.folder import RunFolder
from .drafts import Draft
from .formats import FORMATS
from .rows import Layout, Rows
from .shards import Shards
from .stores.places import STORE_ENDINGS, StoreSink, store_place

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    import numpy as np

    from ..bulk import EmbeddedDocument
    from ..documents import Read
    from .sinks import Sink

_ROWS = 8192
"""So many are written at once: 12 MB of 384 dimensions."""
_NUMBERS = 4_000_000
"""And no more numbers than these."""


class Output(AbstractContextManager["Output"]):
    """Where vectors go, and `<OUT>.errors.jsonl`, the list of the documents that have none.

    Both appear when the `with` block ends without an exception; after one, neither is touched, but for stores, which
    hold what they were given. Where no document failed there is no list, not even an earlier run's. Where no document
    has a vector there is no vectors' file: an earlier run's is renamed to `<file>.before`, which `set_aside` is then.

    `name`: what to call it. `path`: beside which the list and the folder are. `folder` is this run's alone. What others
    put there stays after an exception, and where something is worth trying again.
    """

    def __init__(self, name: str, path: Path, make: Callable[[Path], Sink]) -> None:
        self.name = name
        self.errors_path = path.with_name(path.name + ".errors.jsonl")
        self.set_aside: Path | None = None
        self.written = self.failed = self.retryable = 0
        self.first_failure: FailedDocument | None = None
        self._documents: list[Document] = []
        self._vectors: list[np.ndarray | list[float]] = []
        self._width: int | None = None
        self._about: dict[str, str] = {}
        with ExitStack() as opened:
            self.folder = RunFolder(path)
            opened.callback(self.folder.close, done=False)
            self._errors = Draft(self.errors_path, self.folder.drafts, like=path)
            opened.callback(self._errors.close)
            self._sink = make(self.folder.drafts)
            opened.callback(self._sink.close)
            self._opened = opened.pop_all()

    @property
    def holds_text_ids_only(self) -> bool:
        return self._sink.holds_text_ids_only

    def write(self, outcome: EmbeddedDocument | FailedDocument, read: Read) -> None:
        """What became of a document that was read."""
        if isinstance(outcome, FailedDocument):
            self._write_failed(outcome, read)
        else:
            assert isinstance(read, Document)
            self._write_vector(outcome, read)
            self.written += 1

    def _write_vector(self, embedded: EmbeddedDocument, document: Document) -> None:
        width = len(embedded.vector)
        if self._width is None:
            self._width = width
            self._about = {"impetus.model": embedded.model, "impetus.fingerprint": embedded.fingerprint}
        elif width != self._width:
            raise ImpetusError(
                f"vectors of {self._width} and of {width} dimensions came back: the workers serve different models; "
                "name one with --model"
            )
        # Long texts would fill the memory, and nobody writes them.
        self._documents.append(replace(document, text=""))
        self._vectors.append(embedded.vector)
        if len(self._documents) >= min(_ROWS, _NUMBERS // width):
            self._flush()

    def _flush(self) -> None:
        if self._documents:
            self._sink.write(Rows(self._documents, self._vectors, self._about))
            self._documents, self._vectors = [], []

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
            self._flush()
            self._sink.finish()
        elif self.failed:
            self.set_aside = self._sink.set_aside()
        if self.failed:
            self._errors.publish()
        else:
            self.errors_path.unlink(missing_ok=True)
        if self.written:
            self._sink.publish()


def open_output(name: str, layout: Layout | None = None, *, rows_per_file: int | None = None) -> Output:
    """Gets ready to write `name`: a file, by its ending, or with `rows_per_file` a folder of such; or a store.

    Raises one clear sentence now for what would fail at the end, and `ImpetusError` where another run writes there at
    this moment.
    """
    layout = layout or Layout()
    if (place := store_place(name)) is not None:
        if rows_per_file is not None:
            raise InvalidRequestError("--rows-per-file is for files: leave it out")
        place.kind.require()
        StoreSink.check_for(place.kind, layout)
        return _opened(place.shown, place.beside, lambda _: StoreSink(place, layout))
    path = Path(name)
    make = FORMATS.get(path.suffix.lower())
    if make is None:
        endings = ", ".join([*FORMATS, *STORE_ENDINGS])
        raise InvalidRequestError(
            f"{name!r} must end in one of {endings}, or be postgresql://…: that chooses the format"
        )
    make.require()
    make.check(layout)
    if rows_per_file is not None:
        rows: int = rows_per_file
        Shards.check_place(path)
        return _opened(name, path, lambda drafts: Shards(path, drafts, layout, make, rows))
    if path.is_dir():
        raise InvalidRequestError(f"{name!r} is a folder: give a file")
    return _opened(name, path, lambda drafts: make(path, drafts, layout))


def _opened(name: str, path: Path, make: Callable[[Path], Sink]) -> Output:
    try:
        return Output(name, path, make)
    except OSError as error:
        where = path.parent
        problem = "there is no such folder" if not where.is_dir() else error.strerror
        raise InvalidRequestError(f"nothing can be written in {str(where)!r}: {problem}") from None
