"""How ids and vectors become bytes: Parquet, Arrow, JSON lines or .npy, by the file's ending."""

from __future__ import annotations

import json
from abc import abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import ImpetusError, InvalidRequestError
from .drafts import Draft, set_aside
from .json_text import json_text
from .rows import Layout, Rows, VectorRows, arrow_table, require_arrow, require_numpy
from .sinks import Sink

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from ..documents import Document


class VectorFile(Sink):
    """One file, and perhaps others beside it, which are drafts in `drafts` until they are published."""

    def __init__(self, path: Path, drafts: Path, layout: Layout) -> None:
        self._path = path
        self._layout = layout
        self._drafts = [Draft(path, drafts)]
        self._file = self._drafts[0].file
        for companion in self.companions(path, layout):
            self._drafts.append(Draft(companion, drafts, like=path))

    @staticmethod
    def companions(path: Path, layout: Layout) -> list[Path]:
        """What else is written, beside it."""
        return []

    @abstractmethod
    def write(self, rows: Rows) -> None: ...

    @abstractmethod
    def finish(self) -> None: ...

    def publish(self) -> None:
        for draft in reversed(self._drafts):
            draft.publish()

    def set_aside(self) -> Path | None:
        for companion in self.companions(self._path, self._layout):
            set_aside(companion)
        return set_aside(self._path)

    def close(self) -> None:
        for draft in self._drafts:
            draft.close()


class _JsonLines(VectorFile):
    """{"id": ..., "row": ..., "embedding": [...]}, one a line."""

    holds_text_ids_only = False
    holds_any = True

    @staticmethod
    def require() -> None:
        pass

    @classmethod
    def check(cls, layout: Layout) -> None:
        super().check(layout)
        if layout.precision != "float32":
            require_numpy(f"--precision {layout.precision}")

    def write(self, rows: Rows) -> None:
        for document, members in zip(rows.documents, rows.members(self._layout), strict=True):
            head = json_text(self._about(document))
            self._file.write(f"{head[:-1]}, {members}}}\n".encode())

    def _about(self, document: Document) -> dict[str, Any]:
        about: dict[str, Any] = {"id": document.id, "row": document.row}
        if self._layout.with_files:
            about["file"] = document.file
        return about | dict(zip(self._layout.columns, document.columns, strict=False))

    def finish(self) -> None:
        pass


class _Numpy(VectorFile):
    """A matrix of one row a document, the ids in `<file>.ids.jsonl`, one a line, and for int8 the factors of the rows
    in `<file>.scales.npy`. A document without an id stands there as {"row": ...}."""

    holds_text_ids_only = False

    def __init__(self, path: Path, drafts: Path, layout: Layout) -> None:
        super().__init__(path, drafts, layout)
        self._arrays = [_NpyArray(draft) for draft in (self._drafts[0], *self._drafts[2:])]

    @staticmethod
    def companions(path: Path, layout: Layout) -> list[Path]:
        ids = path.with_name(path.name + ".ids.jsonl")
        return [ids, path.with_name(path.name + ".scales.npy")] if layout.precision == "int8" else [ids]

    @staticmethod
    def require() -> None:
        require_numpy("Writing .npy")

    @classmethod
    def check(cls, layout: Layout) -> None:
        super().check(layout)
        if layout.columns:
            raise InvalidRequestError("a .npy file has no columns for --column or --chunk: write .parquet or .jsonl")

    def write(self, rows: Rows) -> None:
        assert isinstance(rows, VectorRows)
        for array, values in zip(self._arrays, rows.encoded(self._layout.precision), strict=False):
            array.append(values)
        for document in rows.documents:
            name: Any = document.id
            if name is None:
                name = (
                    {"file": document.file, "row": document.row} if self._layout.with_files else {"row": document.row}
                )
            self._drafts[1].file.write(json.dumps(name, ensure_ascii=False).encode() + b"\n")

    def finish(self) -> None:
        for array in self._arrays:
            array.finish()


class _NpyArray:
    """An array that grows along its first axis. Its header is written again at the end, when the number of rows is
    known; numpy leaves room for that."""

    def __init__(self, draft: Draft) -> None:
        self._file = draft.file
        self._rows = self._body_at = 0
        self._like: Any = None

    def append(self, values: np.ndarray | None) -> None:
        assert values is not None
        little: Any = values.astype(values.dtype.newbyteorder("<"), copy=False)
        if self._like is None:
            self._like = little[:0]
            self._write_header()
            self._body_at = self._file.tell()
        self._file.write(little.tobytes())
        self._rows += len(little)

    def finish(self) -> None:
        self._file.seek(0)
        self._write_header()
        if self._file.tell() != self._body_at:
            raise ImpetusError(f"numpy leaves no room in its header for {self._rows:,} rows; write .parquet instead")

    def _write_header(self) -> None:
        from numpy.lib import format as npy

        shape = (self._rows, *self._like.shape[1:])
        header = {"descr": npy.dtype_to_descr(self._like.dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self._file, header)  # type: ignore[no-untyped-call, unused-ignore]


class _ArrowRows(VectorFile):
    """Columns of `arrow_table`, by a writer of pyarrow."""

    holds_any = True

    def __init__(self, path: Path, drafts: Path, layout: Layout) -> None:
        super().__init__(path, drafts, layout)
        self._writer: Any = None

    @abstractmethod
    def _open(self, schema: Any) -> Any:
        """The writer, when the first rows have told the types."""

    def write(self, rows: Rows) -> None:
        table = arrow_table(rows, self._layout)
        self._writer = self._writer or self._open(table.schema)
        self._writer.write_table(table)

    def finish(self) -> None:
        self._writer.close()

    def close(self) -> None:
        if self._writer is not None:
            # Its destructor would write a footer into a file that is closed by then.
            with suppress(Exception):
                self._writer.close()
        super().close()


class _Parquet(_ArrowRows):
    @staticmethod
    def require() -> None:
        require_arrow("Writing .parquet")

    def _open(self, schema: Any) -> Any:
        from pyarrow import parquet

        # Floats of an embedding do not compress, and no two are alike.
        return parquet.ParquetWriter(
            self._file, schema, compression="zstd", use_dictionary=False, write_statistics=False
        )


class _Arrow(_ArrowRows):
    """A file of record batches, which may be mapped into memory."""

    @staticmethod
    def require() -> None:
        require_arrow("Writing .arrow")

    def _open(self, schema: Any) -> Any:
        import pyarrow as pa

        return pa.ipc.new_file(self._file, schema)


FORMATS: dict[str, type[VectorFile]] = {".parquet": _Parquet, ".jsonl": _JsonLines, ".npy": _Numpy, ".arrow": _Arrow}
