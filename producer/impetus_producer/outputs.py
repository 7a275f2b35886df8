"""Vectors written to files: Parquet, JSON lines or .npy, by the file's ending.

Knows files and their formats. Knows no Redis, no job, no input. A file appears under its name when it is whole, and
not before: until then it is a hidden draft beside it, which goes when the writing is given up.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .errors import ImpetusError, InvalidRequestError, MissingExtraError

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np

    from .bulk import EmbeddedDocument
    from .documents import FailedDocument

_ROW_GROUP = 8192
"""Rows that are written at once: 12 MB of 384 dimensions."""


class Output(AbstractContextManager["Output"]):
    """The vectors' file and `<file>.errors.jsonl`, the list of the documents that have none.

    Both appear when the `with` block ends without an exception; after one, neither is touched. Where no document
    failed there is no list, not even an earlier run's; where no document has a vector there is no vectors' file.
    """

    def __init__(self, path: Path, make_vectors: type[_Format]) -> None:
        self.path = path
        self.errors_path = path.with_name(path.name + ".errors.jsonl")
        self.written = self.failed = 0
        with ExitStack() as cleanup:
            self._draft = _Draft(path)
            cleanup.callback(self._draft.remove)
            self._errors = _Draft(self.errors_path)
            cleanup.callback(self._errors.remove)
            self._vectors = make_vectors(path, self._draft.file)
            cleanup.pop_all()

    def write(self, document: EmbeddedDocument) -> None:
        self._vectors.write(document)
        self.written += 1

    def write_failed(self, document: FailedDocument) -> None:
        line = json.dumps({"id": document.id, "reason": document.reason}, ensure_ascii=False)
        self._errors.file.write(line.encode(errors="backslashreplace") + b"\n")
        self.failed += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._publish()
        finally:
            self._vectors.abandon()
            self._draft.remove()
            self._errors.remove()

    def _publish(self) -> None:
        if self.written:
            self._vectors.finish()
        if self.failed:
            self._errors.publish()
        else:
            self.errors_path.unlink(missing_ok=True)
        if self.written:
            self._vectors.publish_companion()
            self._draft.publish()


def open_output(name: str) -> Output:
    """Gets ready to write `name`. Raises one clear sentence now for what would fail at the end."""
    path = Path(name)
    make = _FORMATS.get(path.suffix.lower())
    if make is None:
        raise InvalidRequestError(f"{name!r} must end in one of {', '.join(_FORMATS)}: the ending chooses the format")
    make.require()
    if path.is_dir():
        raise InvalidRequestError(f"{name!r} is a folder: give a file")
    try:
        return Output(path, make)
    except OSError as error:
        where = path.parent
        problem = "there is no such folder" if not where.is_dir() else error.strerror
        raise InvalidRequestError(f"nothing can be written in {str(where)!r}: {problem}") from None


class _Draft:
    """A file being written under a hidden name beside its final one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._draft = path.with_name(f".{path.name}.{os.getpid()}.part")
        self.file: IO[bytes] = self._draft.open("w+b")

    def publish(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self._draft.replace(self._path)

    def remove(self) -> None:
        # Closing flushes, which fails again on a full disk.
        with suppress(OSError, ValueError):
            self.file.close()
        self._draft.unlink(missing_ok=True)


class _Format(ABC):
    """How ids and vectors become bytes. `write` as they come, then `finish`."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self._width: int | None = None
        self._about: dict[str, str] = {}

    def write(self, document: EmbeddedDocument) -> None:
        width = len(document.vector)
        if self._width is None:
            self._width = width
            self._about = {"impetus.model": document.model, "impetus.fingerprint": document.fingerprint}
        elif width != self._width:
            raise ImpetusError(
                f"vectors of {self._width} and of {width} dimensions came back: the workers serve different models; "
                "name one with --model"
            )
        self._add(document)

    @staticmethod
    @abstractmethod
    def require() -> None:
        """Raises `MissingExtraError` where the packages for this format are not installed."""

    @abstractmethod
    def _add(self, document: EmbeddedDocument) -> None: ...

    @abstractmethod
    def finish(self) -> None:
        """Writes what is still held. The file is whole then."""

    def publish_companion(self) -> None:  # noqa: B027 - most formats are one file
        """Puts a second file, where there is one, under its final name."""

    def abandon(self) -> None:  # noqa: B027 - most formats hold nothing
        """Lets go of what else is open."""


class _JsonLines(_Format):
    """{"id": ..., "embedding": [...]}, one a line. Nine digits hold every float32 exactly."""

    @staticmethod
    def require() -> None:
        pass

    def _add(self, document: EmbeddedDocument) -> None:
        vector = document.vector
        numbers = vector if isinstance(vector, list) else vector.tolist()
        # Formatting all numbers at once takes a third of json.dumps' time.
        embedding = ",".join(["%.9g"] * len(numbers)) % tuple(numbers)
        name = json.dumps(document.id, ensure_ascii=False)
        self._file.write(f'{{"id": {name}, "embedding": [{embedding}]}}\n'.encode())

    def finish(self) -> None:
        pass


class _Numpy(_Format):
    """A float32 matrix of one row a document, and the ids in `<file>.ids.jsonl`, one JSON string a line.

    The header is written again at the end, when the number of rows is known; numpy leaves room for that.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        super().__init__(path, file)
        self._ids = _Draft(path.with_name(path.name + ".ids.jsonl"))
        self._rows = self._body_at = 0

    @staticmethod
    def require() -> None:
        try:
            import numpy  # noqa: F401 - is it there
        except ImportError:
            raise MissingExtraError("Writing .npy", "files") from None

    def _add(self, document: EmbeddedDocument) -> None:
        import numpy as np

        if not self._rows:
            self._write_header()
            self._body_at = self._file.tell()
        self._file.write(np.asarray(document.vector, dtype="<f4").tobytes())
        self._ids.file.write(json.dumps(document.id, ensure_ascii=False).encode() + b"\n")
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

    def publish_companion(self) -> None:
        self._ids.publish()

    def abandon(self) -> None:
        self._ids.remove()


class _Parquet(_Format):
    """Columns `id` (string) and `vector` (fixed-size list of float32), with the model in the file's metadata."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        super().__init__(path, file)
        self._writer: Any = None
        self._ids: list[str] = []
        self._vectors: list[np.ndarray | list[float]] = []

    @staticmethod
    def require() -> None:
        try:
            import pyarrow.parquet  # noqa: F401 - is it there
        except ImportError:
            raise MissingExtraError("Writing .parquet", "files") from None

    def _add(self, document: EmbeddedDocument) -> None:
        self._ids.append(document.id)
        self._vectors.append(document.vector)
        if len(self._ids) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        import numpy as np
        import pyarrow as pa
        from pyarrow import parquet

        vector_type = pa.list_(pa.float32(), self._width)
        schema = pa.schema(
            [pa.field("id", pa.string(), nullable=False), pa.field("vector", vector_type, nullable=False)],
            metadata=self._about,
        )
        if self._writer is None:
            # Floats of an embedding do not compress, and no two are alike.
            self._writer = parquet.ParquetWriter(
                self._file, schema, compression="zstd", use_dictionary=False, write_statistics=False
            )
        flat = pa.array(np.asarray(self._vectors, dtype=np.float32).reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(flat, type=vector_type)
        self._writer.write_table(pa.table([pa.array(self._ids, pa.string()), vectors], schema=schema))
        self._ids, self._vectors = [], []

    def finish(self) -> None:
        if self._ids:
            self._flush()
        self._writer.close()

    def abandon(self) -> None:
        if self._writer is not None:
            # Its destructor would write a footer into a file that is closed by then.
            with suppress(Exception):
                self._writer.close()


_FORMATS: dict[str, type[_Format]] = {".parquet": _Parquet, ".jsonl": _JsonLines, ".npy": _Numpy}
