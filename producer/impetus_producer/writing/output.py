"""What a run writes: a file of vectors, and a list of the documents that have none.

Knows files. Knows no Redis, no job, no input.
"""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ..bulk.kept.folder import RunFolder
from ..documents import Document, FailedDocument
from ..errors import ImpetusError, InvalidRequestError
from ..shown import without_password
from .drafts import Draft
from .formats import FORMATS
from .rows import AnswerRows, Layout, Rows, SparseRows, VectorRows
from .shards import Shards
from .stores.places import STORE_ENDINGS, StoreSink, store_place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from ..bulk.generating import GeneratedDocument
    from ..bulk.sparse import SparseDocument
    from ..bulk.works import EmbeddedDocument
    from ..documents import Read
    from .sinks import Sink

MOST_ROWS = 8192
"""So many are written at once: 12 MB of 384 dimensions."""
_MOST_NUMBERS = 4_000_000
"""And no more numbers than these."""

OutcomeT = TypeVar("OutcomeT")
_OutcomeT = TypeVar("_OutcomeT", contravariant=True)


class RowsOf(Protocol[_OutcomeT]):
    """Makes rows of outcomes."""

    def most(self, outcome: _OutcomeT) -> int:
        """How many go together."""
        ...

    def __call__(self, documents: Sequence[Document], outcomes: Sequence[_OutcomeT]) -> Rows: ...


class RowsOfVectors:
    """Raises `ImpetusError` where they are of more than one width."""

    _width: int | None = None

    def most(self, outcome: EmbeddedDocument) -> int:
        return min(MOST_ROWS, _MOST_NUMBERS // len(outcome.vector))

    def __call__(self, documents: Sequence[Document], outcomes: Sequence[EmbeddedDocument]) -> Rows:
        about = {"impetus.model": outcomes[0].model, "impetus.fingerprint": outcomes[0].fingerprint}
        for width in (len(outcome.vector) for outcome in outcomes):
            self._width = self._width or width
            if width != self._width:
                raise ImpetusError(
                    f"vectors of {self._width} and of {width} dimensions came back: the workers serve different "
                    "models; name one with --model"
                )
        return VectorRows(documents, [outcome.vector for outcome in outcomes], about)


class RowsOfSparse:
    def most(self, outcome: SparseDocument) -> int:
        return MOST_ROWS

    def __call__(self, documents: Sequence[Document], outcomes: Sequence[SparseDocument]) -> Rows:
        about = {"impetus.model": outcomes[0].model, "impetus.fingerprint": outcomes[0].fingerprint}
        return SparseRows(documents, [(outcome.indices, outcome.values) for outcome in outcomes], about)


class RowsOfAnswers:
    def most(self, outcome: GeneratedDocument) -> int:
        return MOST_ROWS

    def __call__(self, documents: Sequence[Document], outcomes: Sequence[GeneratedDocument]) -> Rows:
        about = {"impetus.model": outcomes[0].model, "impetus.fingerprint": outcomes[0].fingerprint}
        return AnswerRows(documents, [outcome.answer for outcome in outcomes], about)


class Output(AbstractContextManager["Output[OutcomeT]"], Generic[OutcomeT]):
    """Where vectors go, and `<OUT>.errors.jsonl`, the list of the documents that have none.

    Both appear when the `with` block ends without an exception; after one, neither is touched, but for stores, which
    hold what they were given. Where no document failed there is no list, not even an earlier run's. Where no document
    has a vector there is no vectors' file: an earlier run's is renamed to `<file>.before`, which `set_aside` is then.

    `name`: what to call it. `path`: beside which the list and the folder are. `folder` is this run's alone. What others
    put there stays after an exception, and where something is worth trying again.
    """

    def __init__(self, name: str, path: Path, make: Callable[[Path], Sink], rows_of: RowsOf[OutcomeT]) -> None:
        self.name = name
        self._rows_of = rows_of
        self.errors_path = path.with_name(path.name + ".errors.jsonl")
        self.set_aside: Path | None = None
        self.written = self.failed = self.retryable = 0
        self.first_failure: FailedDocument | None = None
        self._held: list[tuple[Document, OutcomeT]] = []
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

    def write(self, outcome: OutcomeT | FailedDocument, read: Read) -> None:
        """What became of a document that was read."""
        if isinstance(outcome, FailedDocument):
            self._write_failed(outcome, read)
            return
        assert isinstance(read, Document)
        # Long texts would fill the memory, and nobody writes them.
        self._held.append((replace(read, text=""), outcome))
        self.written += 1
        if len(self._held) >= self._rows_of.most(outcome):
            self._flush()

    def _flush(self) -> None:
        if self._held:
            documents, outcomes = zip(*self._held, strict=True)
            self._sink.write(self._rows_of(documents, outcomes))
            self._held = []

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


def open_output(
    name: str, layout: Layout | None = None, *, rows_per_file: int | None = None
) -> Output[EmbeddedDocument]:
    """Gets ready to write vectors to `name`: a file, by its ending, or with `rows_per_file` a folder of such; or a
    store.

    Raises one clear sentence now for what would fail at the end, and `ImpetusError` where another run writes there at
    this moment.
    """
    return _opened(name, layout or Layout(), rows_per_file, RowsOfVectors())


def open_sparse(name: str, layout: Layout, *, rows_per_file: int | None = None) -> Output[SparseDocument]:
    """As `open_output`, for sparse vectors."""
    return _opened(name, replace(layout, holds="sparse"), rows_per_file, RowsOfSparse())


def open_answers(name: str, layout: Layout, *, rows_per_file: int | None = None) -> Output[GeneratedDocument]:
    """As `open_output`, for texts."""
    return _opened(name, replace(layout, holds="answers"), rows_per_file, RowsOfAnswers())


def _opened(name: str, layout: Layout, rows_per_file: int | None, rows_of: RowsOf[OutcomeT]) -> Output[OutcomeT]:
    path, make = _sink(name, layout, rows_per_file)
    try:
        return Output(without_password(name) if "://" in name else name, path, make, rows_of)
    except OSError as error:
        where = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
        problem = "there is no such folder" if not where.is_dir() else error.strerror
        raise InvalidRequestError(f"nothing can be written in {str(where)!r}: {problem}") from None


def _sink(name: str, layout: Layout, rows_per_file: int | None) -> tuple[Path, Callable[[Path], Sink]]:
    """Beside what an output keeps its files, and what makes its sink, given a folder for drafts."""
    if (place := store_place(name)) is not None:
        if rows_per_file is not None:
            raise InvalidRequestError("--rows-per-file is for files: leave it out")
        place.kind.require()
        StoreSink.check_for(place.kind, layout)
        return place.beside, lambda _: StoreSink(place, layout)
    path = Path(name)
    make = FORMATS.get(path.suffix.lower())
    if make is None:
        endings = ", ".join([*FORMATS, *STORE_ENDINGS])
        raise InvalidRequestError(f"{name!r} must end in one of {endings}, or begin with postgresql://")
    make.require()
    make.check(layout)
    if rows_per_file is not None:
        rows: int = rows_per_file
        Shards.check_place(path)
        return path, lambda drafts: Shards(path, drafts, layout, make, rows)
    if path.is_dir():
        raise InvalidRequestError(f"{name!r} is a folder: give a file")
    return path, lambda drafts: make(path, drafts, layout)
