"""How ids and vectors become bytes: Parquet, JSON lines or .npy, by the file's ending."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ImpetusError, InvalidRequestError, MissingExtraError
from .drafts import Draft, set_aside

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from ..bulk import EmbeddedDocument
    from ..documents import Document

ROW_GROUP = 8192
"""Rows that are written at once: 12 MB of 384 dimensions."""
_OWN_COLUMNS = ("id", "row", "file", "vector", "embedding")


class VectorFile(ABC):
    """One format. `write` as they come, then `finish`."""

    holds_text_ids_only: ClassVar[bool] = False
    """Whether 0 and "0" are written as the same id."""

    def __init__(self, path: Path, drafts: Path, columns: Mapping[str, Any], with_files: bool) -> None:
        self._path = path
        self._drafts = drafts
        self._draft = Draft(path, drafts)
        self._file = self._draft.file
        self._columns = columns
        self._with_files = with_files
        self._width: int | None = None
        self._about: dict[str, str] = {}

    def write(self, embedded: EmbeddedDocument, document: Document) -> None:
        width = len(embedded.vector)
        if self._width is None:
            self._width = width
            self._about = {"impetus.model": embedded.model, "impetus.fingerprint": embedded.fingerprint}
        elif width != self._width:
            raise ImpetusError(
                f"vectors of {self._width} and of {width} dimensions came back: the workers serve different models; "
                "name one with --model"
            )
        self._add(embedded.vector, document)

    @staticmethod
    @abstractmethod
    def require() -> None:
        """Raises `MissingExtraError` where the packages for this format are not installed."""

    @classmethod
    def check_columns(cls, names: tuple[str, ...]) -> None:
        for name in names:
            if name in _OWN_COLUMNS:
                raise InvalidRequestError(f"OUT has a column {name!r} of its own: leave --column {name} out")

    @abstractmethod
    def _add(self, vector: np.ndarray | list[float], document: Document) -> None: ...

    @abstractmethod
    def finish(self) -> None:
        """Writes what is still held. The file is whole then."""

    def publish(self) -> None:
        """Puts what was finished under its final name."""
        self._draft.publish()

    def set_aside(self) -> Path | None:
        """Renames what an earlier run wrote there, so that nobody takes it for this one's. None where nothing is."""
        return set_aside(self._path)

    def close(self) -> None:
        """Lets go of what is open, whatever became of it."""
        self._draft.close()


class _JsonLines(VectorFile):
    """{"id": ..., "row": ..., "embedding": [...]}, one a line. Nine digits hold every float32 exactly."""

    @staticmethod
    def require() -> None:
        pass

    def _add(self, vector: np.ndarray | list[float], document: Document) -> None:
        numbers = vector if isinstance(vector, list) else vector.tolist()
        # Formatting all numbers at once takes a third of json.dumps' time.
        embedding = ",".join(["%.9g"] * len(numbers)) % tuple(numbers)
        about: dict[str, Any] = {"id": document.id, "row": document.row}
        if self._with_files:
            about["file"] = document.file
        if self._columns:
            about |= zip(self._columns, map(_as_json, document.columns), strict=True)
        head = json.dumps(about, ensure_ascii=False, default=str)
        self._file.write(f'{head[:-1]}, "embedding": [{embedding}]}}\n'.encode())

    def finish(self) -> None:
        pass


class _Numpy(VectorFile):
    """A float32 matrix of one row a document, and the ids in `<file>.ids.jsonl`, one a line.

    A document without an id stands there as {"row": ...}. The header is written again at the end, when the number of
    rows is known; numpy leaves room for that.
    """

    def __init__(self, path: Path, drafts: Path, columns: Mapping[str, Any], with_files: bool) -> None:
        super().__init__(path, drafts, columns, with_files)
        self._ids_path = path.with_name(path.name + ".ids.jsonl")
        self._ids = Draft(self._ids_path, drafts, like=path)
        self._rows = self._body_at = 0

    @staticmethod
    def require() -> None:
        try:
            import numpy  # noqa: F401 - is it there
        except ImportError:
            raise MissingExtraError("Writing .npy", "files") from None

    @classmethod
    def check_columns(cls, names: tuple[str, ...]) -> None:
        if names:
            raise InvalidRequestError("a .npy file has no columns for --column: write .parquet or .jsonl")

    def _add(self, vector: np.ndarray | list[float], document: Document) -> None:
        import numpy as np

        if not self._rows:
            self._write_header()
            self._body_at = self._file.tell()
        self._file.write(np.asarray(vector, dtype="<f4").tobytes())
        name: Any = document.id
        if name is None:
            name = {"file": document.file, "row": document.row} if self._with_files else {"row": document.row}
        self._ids.file.write(json.dumps(name, ensure_ascii=False).encode() + b"\n")
        self._rows += 1

    def finish(self) -> None:
        self._file.seek(0)
        self._write_header()
        if self._file.tell() != self._body_at:
            raise ImpetusError(f"numpy leaves no room in its header for {self._rows:,} rows; write .parquet instead")

    def _write_header(self) -> None:
        from numpy.lib import format as npy

        header = {"descr": "<f4", "fortran_order": False, "shape": (self._rows, self._width)}
        npy.write_array_header_1_0(self._file, header)  # type: ignore[no-untyped-call, unused-ignore]

    def publish(self) -> None:
        self._ids.publish()
        super().publish()

    def set_aside(self) -> Path | None:
        set_aside(self._ids_path)
        return super().set_aside()

    def close(self) -> None:
        self._ids.close()
        super().close()


class _Parquet(VectorFile):
    """Columns `id` (string), `row`, further ones, and `vector` (fixed-size list of float32); the model is in the
    file's metadata. A further column of no certain type is one of strings: of JSON where a value is none itself."""

    holds_text_ids_only = True

    def __init__(self, path: Path, drafts: Path, columns: Mapping[str, Any], with_files: bool) -> None:
        super().__init__(path, drafts, columns, with_files)
        self._writer: Any = None
        self._documents: list[Document] = []
        self._vectors: list[np.ndarray | list[float]] = []

    @staticmethod
    def require() -> None:
        try:
            import pyarrow.parquet  # noqa: F401 - is it there
        except ImportError:
            raise MissingExtraError("Writing .parquet", "files") from None

    def _add(self, vector: np.ndarray | list[float], document: Document) -> None:
        self._documents.append(document)
        self._vectors.append(vector)
        if len(self._documents) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        import numpy as np
        import pyarrow as pa
        from pyarrow import parquet

        documents = self._documents
        vector_type = pa.list_(pa.float32(), self._width)
        columns = [
            (pa.field("id", pa.string()), [None if d.id is None else str(d.id) for d in documents]),
            (pa.field("row", pa.int64()), [d.row for d in documents]),
        ]
        if self._with_files:
            columns.append((pa.field("file", pa.string()), [d.file for d in documents]))
        for at, (name, kind) in enumerate(self._columns.items()):
            values = [d.columns[at] for d in documents]
            columns.append(
                (pa.field(name, pa.string()), [_as_string(value) for value in values])
                if kind is None
                else (pa.field(name, kind), values)
            )
        fields = [field for field, _ in columns]
        schema = pa.schema([*fields, pa.field("vector", vector_type, nullable=False)], metadata=self._about)
        if self._writer is None:
            # Floats of an embedding do not compress, and no two are alike.
            self._writer = parquet.ParquetWriter(
                self._file, schema, compression="zstd", use_dictionary=False, write_statistics=False
            )
        flat = pa.array(np.asarray(self._vectors, dtype=np.float32).reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(flat, type=vector_type)
        arrays = [pa.array(values, field.type) for field, values in columns]
        self._writer.write_table(pa.table([*arrays, vectors], schema=schema))
        self._documents, self._vectors = [], []

    def finish(self) -> None:
        if self._documents:
            self._flush()
        self._writer.close()

    def close(self) -> None:
        if self._writer is not None:
            # Its destructor would write a footer into a file that is closed by then.
            with suppress(Exception):
                self._writer.close()
        super().close()


def _as_json(value: Any) -> Any:
    """JSON has no word for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_string(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


FORMATS: dict[str, type[VectorFile]] = {".parquet": _Parquet, ".jsonl": _JsonLines, ".npy": _Numpy}
