"""What a store is: a table of rows by key, which rows of the same key replace."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from ..json_text import json_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..rows import Precision


class VectorStore(ABC):
    """Made cheaply, with the `address` of a database and a `table` in it; `open` is when it is reached.

    Tables are pyarrow's, with the columns `key` (text), `id`, `row`, further ones, and `vector`. What a method raises
    of its library's errors is told in one sentence.
    """

    precisions: ClassVar[tuple[Precision, ...]] = ("float32",)

    def __init__(self, address: str, table: str) -> None:
        self.address = address
        self.table = table

    @staticmethod
    @abstractmethod
    def require() -> None:
        """Raises `MissingExtraError` where the packages for this are not installed."""

    @abstractmethod
    def open(self, schema: Any) -> None:
        """Reaches the database, and makes the table where it is not there."""

    @abstractmethod
    def upsert(self, rows: Any) -> None:
        """Durable when it returns. No key is twice in `rows`."""

    @abstractmethod
    def close(self) -> None:
        """May be called at any time, and again."""


def plain_values(rows: Any, names: list[str]) -> Iterator[tuple[Any, ...]]:
    """The rows of these columns for a database without lists: what is no scalar is JSON."""
    columns = [rows.column(name).to_pylist() for name in names]
    for values in zip(*columns, strict=True):
        yield tuple(json_text(value) if isinstance(value, list | dict) else value for value in values)


def matrix_of(rows: Any) -> Any:
    """The vectors as numpy's, one row each."""
    vectors = rows.column("vector").combine_chunks()
    return vectors.flatten().to_numpy().reshape(len(vectors), -1)
