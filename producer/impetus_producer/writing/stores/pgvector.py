"""Postgres with pgvector: a table whose column `vector` is of type vector, or halfvec for float16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import MissingExtraError
from .interface import VectorStore, matrix_of, plain_values

if TYPE_CHECKING:
    from ..rows import Precision


class PgVector(VectorStore):
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "float16")
    _connection: Any = None

    @staticmethod
    def require() -> None:
        try:
            import pgvector  # noqa: F401 - is it there
            import psycopg  # noqa: F401
            import pyarrow  # noqa: F401
        except ImportError:
            raise MissingExtraError("Writing to Postgres", "pgvector") from None

    def open(self, schema: Any) -> None:
        import psycopg
        import pyarrow.types as is_
        from pgvector.psycopg import register_vector
        from psycopg import sql

        def type_of(field: Any) -> str:
            kind = field.type
            if field.name == "vector":
                return f"{'halfvec' if is_.is_float16(kind.value_type) else 'vector'}({kind.list_size}) NOT NULL"
            number = "bigint" if is_.is_integer(kind) else "double precision" if is_.is_floating(kind) else "text"
            return "boolean" if is_.is_boolean(kind) else f"{number}{' PRIMARY KEY' if field.name == 'key' else ''}"

        self._connection = psycopg.connect(self.address, autocommit=True)
        if self._connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone() is None:
            self._connection.execute("CREATE EXTENSION vector")
        register_vector(self._connection)
        self._names = [*(name for name in schema.names if name != "vector"), "vector"]
        columns = [sql.SQL("{} {}").format(sql.Identifier(each.name), sql.SQL(type_of(each))) for each in schema]
        table = sql.Identifier(self.table)
        self._connection.execute(
            sql.SQL("CREATE TABLE IF NOT EXISTS {} ({})").format(table, sql.SQL(", ").join(columns))
        )
        names = list(map(sql.Identifier, self._names))
        self._upsert = sql.SQL("INSERT INTO {} ({}) VALUES ({}) ON CONFLICT (key) DO UPDATE SET {}").format(
            table,
            sql.SQL(", ").join(names),
            sql.SQL(", ").join(sql.Placeholder() * len(names)),
            sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(name) for name in names),
        )

    def upsert(self, rows: Any) -> None:
        values = zip(plain_values(rows, self._names[:-1]), matrix_of(rows), strict=True)
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.executemany(self._upsert, [(*row, vector) for row, vector in values])

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
