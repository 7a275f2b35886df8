"""What is written: rows of documents and their vectors, some thousand at a time, in the numbers that were asked for.

Knows documents and vectors. Knows no file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from ..documents import Document

Precision = Literal["float32", "float16", "int8", "binary", "ubinary"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "binary", "ubinary")
OWN_COLUMNS = ("key", "id", "row", "file", "vector", "scale", "embedding")


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of each row. `columns`: the further ones in the order of `Document.columns`, each with its Arrow
    type, `int`, or None where it has no certain one and is written as a string."""

    columns: Mapping[str, Any] = field(default_factory=dict)
    with_files: bool = False
    precision: Precision = "float32"


@dataclass(frozen=True, slots=True)
class Rows:
    """Documents, without their texts, and their vectors, all of one width."""

    documents: Sequence[Document]
    vectors: Sequence[np.ndarray | list[float]]
    about: Mapping[str, str]
    """Which model made them, and in which numbers they are written."""

    @property
    def width(self) -> int:
        return len(self.vectors[0])


def encoded(rows: Rows, precision: Precision) -> tuple[np.ndarray, np.ndarray | None]:
    """The matrix in these numbers and, for int8, the factor of each row: a float32 is about int8 times factor.

    `binary` and `ubinary` are the signs, eight a byte and the first the highest bit, as `quantize_embeddings` of
    sentence-transformers packs them: int8 (less 128) and uint8.
    """
    import numpy as np

    matrix = np.asarray(rows.vectors, dtype=np.float32)
    if precision == "float32":
        return matrix, None
    if precision == "float16":
        return matrix.astype(np.float16), None
    if precision == "int8":
        scales = np.abs(matrix).max(axis=1) / 127
        whole = np.divide(matrix, scales[:, None], out=np.zeros_like(matrix), where=scales[:, None] > 0)
        return np.rint(whole).astype(np.int8), scales
    packed = np.packbits(matrix > 0, axis=1)
    return (packed if precision == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)), None


def key_of(document: Document, layout: Layout) -> str:
    """Names a row among all: its document's id, else its place; and its chunk."""
    key = str(document.id) if document.id is not None else f"{document.file or ''}#{document.row}"
    chunk = list(layout.columns).index("chunk") if layout.columns.get("chunk") is int else None
    return key if chunk is None else f"{key}#{document.columns[chunk]}"


def arrow_table(rows: Rows, layout: Layout, *, with_keys: bool = False) -> Any:
    """`id`, `row`, further columns, `vector` (a list of fixed size), and `scale` for int8. The model is in the schema's
    metadata. `with_keys`: and `key` before them."""
    import pyarrow as pa

    documents = rows.documents
    matrix, scales = encoded(rows, layout.precision)
    columns = [
        (pa.field("id", pa.string()), [None if each.id is None else str(each.id) for each in documents]),
        (pa.field("row", pa.int64()), [each.row for each in documents]),
    ]
    if with_keys:
        columns.insert(0, (pa.field("key", pa.string()), [key_of(each, layout) for each in documents]))
    if layout.with_files:
        columns.append((pa.field("file", pa.string()), [each.file for each in documents]))
    for at, (name, kind) in enumerate(layout.columns.items()):
        values = [each.columns[at] for each in documents]
        if kind is None:
            columns.append((pa.field(name, pa.string()), [_as_string(value) for value in values]))
        else:
            columns.append((pa.field(name, pa.int64() if kind is int else kind), values))
    flat = pa.array(matrix.reshape(-1))
    vector = pa.field("vector", pa.list_(flat.type, matrix.shape[1]), nullable=False)
    fields = [*(each for each, _ in columns), vector]
    arrays = [pa.array(values, each.type) for each, values in columns]
    arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=vector.type))
    if scales is not None:
        fields.append(pa.field("scale", pa.float32(), nullable=False))
        arrays.append(pa.array(scales))
    return pa.table(arrays, schema=pa.schema(fields, metadata=dict(rows.about)))


def require_numpy(what: str) -> None:
    try:
        import numpy  # noqa: F401 - is it there
    except ImportError:
        raise MissingExtraError(what, "files") from None


def require_arrow(what: str) -> None:
    try:
        import pyarrow.parquet  # noqa: F401 - is it there
    except ImportError:
        raise MissingExtraError(what, "files") from None


def _as_string(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
