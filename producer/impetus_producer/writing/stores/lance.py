"""LanceDB: `folder/table.lance`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import MissingExtraError
from .interface import VectorStore

if TYPE_CHECKING:
    from ..rows import Precision


class Lance(VectorStore):
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "float16")
    _table: Any = None

    @staticmethod
    def require() -> None:
        try:
            import lancedb  # noqa: F401 - is it there
        except ImportError:
            raise MissingExtraError("Writing to LanceDB", "lancedb") from None

    def open(self, schema: Any) -> None:
        import lancedb

        self._table = lancedb.connect(self.address).create_table(self.table, schema=schema, exist_ok=True)

    def upsert(self, rows: Any) -> None:
        merge = self._table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(rows)

    def close(self) -> None:
        if self._table is not None:
            table, self._table = self._table, None
            # Each batch was a file of its own so far.
            table.optimize()
