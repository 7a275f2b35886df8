"""What is written: documents and what was made of each, some thousand rows at a time.

Knows documents, vectors and answers. Knows no file.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from ..errors import MissingExtraError
from .json_text import json_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np

    from ..documents import Document

Precision = Literal["float32", "float16", "int8", "binary", "ubinary"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "binary", "ubinary")
_VECTOR_COLUMNS = ("vector", "scale", "embedding")
_SPARSE_COLUMNS = ("indices", "values", "embedding")


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of each row. `columns`: the further ones in the order of `Document.columns`, each with its Arrow
    type, `int`, or None where it has no certain one and is written as a string."""

    columns: Mapping[str, Any] = field(default_factory=dict)
    with_files: bool = False
    precision: Precision = "float32"
    holds: Literal["vectors", "sparse", "answers"] = "vectors"

    @property
    def own_columns(self) -> tuple[str, ...]:
        made = {"vectors": _VECTOR_COLUMNS, "sparse": _SPARSE_COLUMNS, "answers": tuple(ANSWER_COLUMNS)}
        return ("key", "id", "row", "file", *made[self.holds])


@dataclass(frozen=True, slots=True)
class Rows(ABC):
    """Documents, without their texts, and what was made of each."""

    documents: Sequence[Document]
    results: Sequence[Any]
    about: Mapping[str, str]
    """Which model made them."""

    def part(self, start: int, end: int) -> Self:
        return replace(self, documents=self.documents[start:end], results=self.results[start:end])

    @abstractmethod
    def columns(self, layout: Layout) -> list[tuple[Any, Any]]:
        """The results as Arrow fields and arrays."""

    @abstractmethod
    def members(self, layout: Layout) -> Iterable[str]:
        """Each result as members of a JSON object."""


class VectorRows(Rows):
    """`results` are vectors, all of one width."""

    __slots__ = ()

    def encoded(self, precision: Precision) -> tuple[np.ndarray, np.ndarray | None]:
        """The matrix in these numbers and, for int8, the factor of each row: a float32 is about int8 times factor.

        `binary` and `ubinary` are the signs, eight a byte and the first the highest bit, as `quantize_embeddings` of
        sentence-transformers packs them: int8 (less 128) and uint8.
        """
        import numpy as np

        matrix = np.asarray(self.results, dtype=np.float32)
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

    def columns(self, layout: Layout) -> list[tuple[Any, Any]]:
        """`vector`, a list of fixed size, and `scale` for int8."""
        import pyarrow as pa

        matrix, scales = self.encoded(layout.precision)
        flat = pa.array(matrix.reshape(-1))
        kind = pa.list_(flat.type, matrix.shape[1])
        vector = pa.FixedSizeListArray.from_arrays(flat, type=kind)
        columns = [(pa.field("vector", kind, nullable=False), vector)]
        if scales is not None:
            columns.append((pa.field("scale", pa.float32(), nullable=False), pa.array(scales)))
        return columns

    def members(self, layout: Layout) -> Iterable[str]:
        """`embedding`, and `scale` for int8. Nine digits hold every float32, five a float16."""
        vectors: Any = self.results
        scales: Any = None
        if layout.precision != "float32":
            vectors, scales = self.encoded(layout.precision)
        form = {"float32": "%.9g", "float16": "%.5g"}.get(layout.precision, "%d")
        for at, vector in enumerate(vectors):
            numbers = vector if isinstance(vector, list) else vector.tolist()
            scale = "" if scales is None else f'"scale": {float(scales[at])}, '
            # Formatting all numbers at once takes a third of json.dumps' time.
            yield f'{scale}"embedding": [{",".join([form] * len(numbers)) % tuple(numbers)}]'


class SparseRows(Rows):
    """`results` are indices and values."""

    __slots__ = ()

    def columns(self, layout: Layout) -> list[tuple[Any, Any]]:
        """`indices` and `values`, lists of any length."""
        import pyarrow as pa

        kinds = (pa.list_(pa.int32()), pa.list_(pa.float32()))
        return [
            (pa.field(name, kind, nullable=False), pa.array(list(values), kind))
            for name, kind, values in zip(_SPARSE_COLUMNS, kinds, zip(*self.results, strict=True), strict=False)
        ]

    def members(self, layout: Layout) -> Iterable[str]:
        """`embedding`, an object of both. Nine digits hold every float32."""
        for indices, values in self.results:
            weights = ",".join(["%.9g"] * len(values)) % tuple(values)
            yield f'"embedding": {{"indices": [{",".join(map(str, indices))}], "values": [{weights}]}}'


class AnswerRows(Rows):
    """`results` are dictionaries of `ANSWER_COLUMNS`."""

    __slots__ = ()

    def columns(self, layout: Layout) -> list[tuple[Any, Any]]:
        import pyarrow as pa

        return [
            (pa.field(name, kind), pa.array([each[name] for each in self.results], kind))
            for name, kind in (
                (name, pa.int64() if kind is int else pa.string()) for name, kind in ANSWER_COLUMNS.items()
            )
        ]

    def members(self, layout: Layout) -> Iterable[str]:
        for result in self.results:
            yield json.dumps(result, ensure_ascii=False)[1:-1]


ANSWER_COLUMNS: dict[str, type[str] | type[int]] = {
    "text": str,
    "finish_reason": str,
    "reasoning": str,
    "prompt_tokens": int,
    "completion_tokens": int,
}
"""What is written of an answer. `reasoning`: what the model thought first, where it did; `finish_reason`: `length`
where the answer was cut off."""


def key_of(document: Document, layout: Layout) -> str:
    """Names a row among all: its document's id, else its place; and its chunk."""
    key = str(document.id) if document.id is not None else f"{document.file or ''}#{document.row}"
    chunk = list(layout.columns).index("chunk") if layout.columns.get("chunk") is int else None
    return key if chunk is None else f"{key}#{document.columns[chunk]}"


def arrow_table(rows: Rows, layout: Layout, *, with_keys: bool = False) -> Any:
    """`id`, `row`, further columns, and the results'. The model is in the schema's metadata. `with_keys`: and `key`
    before them."""
    import pyarrow as pa

    documents = rows.documents
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
    made = [(field, pa.array(values, field.type)) for field, values in columns] + rows.columns(layout)
    schema = pa.schema([field for field, _ in made], metadata=dict(rows.about))
    return pa.table([array for _, array in made], schema=schema)


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
    return value if value is None or isinstance(value, str) else json_text(value)
