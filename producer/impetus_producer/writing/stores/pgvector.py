"""Postgres with pgvector: a table whose column `vector` is of type vector, or halfvec for float16."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import MissingExtraError
from .interface import VectorStore, matrix_of, plain_values

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from ..rows import Precision


class PgVector(VectorStore):
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "float16")
    _thread: ThreadPoolExecutor | None = None
    """Where the connection's event loop runs: the caller's may be running already, as a notebook's is."""
    _connection: Any = None

    @staticmethod
    def require() -> None:
        try:
            import asyncpg  # noqa: F401 - is it there
            import pgvector  # noqa: F401
            import pyarrow  # noqa: F401
        except ImportError:
            raise MissingExtraError("Writing to Postgres", "pgvector") from None

    def open(self, schema: Any) -> None:
        self._thread, self._runner = ThreadPoolExecutor(1, "postgres"), asyncio.Runner()
        self._run(self._open(schema))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._thread is not None
        self._thread.submit(self._runner.run, work).result()

    async def _open(self, schema: Any) -> None:
        import asyncpg
        from pgvector.asyncpg import register_vector

        self._connection = connection = await asyncpg.connect(self.address)
        if await connection.fetchrow("SELECT 1 FROM pg_extension WHERE extname = 'vector'") is None:
            await connection.execute("CREATE EXTENSION vector")
        await register_vector(connection)
        types = {each.name: _type_of(each) for each in schema}
        columns = ", ".join(f"{_quoted(name)} {kind}" for name, kind in types.items())
        await connection.execute(f"CREATE TABLE IF NOT EXISTS {_quoted(self.table)} ({columns})")
        self._names = [*(name for name in types if name != "vector"), "vector"]
        self._texts = [types[name].startswith("text") for name in self._names[:-1]]
        names = list(map(_quoted, self._names))
        self._upsert = (
            f"INSERT INTO {_quoted(self.table)} ({', '.join(names)}) "
            f"VALUES ({', '.join(f'${number}' for number in range(1, len(names) + 1))}) "
            f"ON CONFLICT (key) DO UPDATE SET {', '.join(f'{name} = EXCLUDED.{name}' for name in names)}"
        )

    def upsert(self, rows: Any) -> None:
        given = [
            (*(_as_text(value) if text else value for value, text in zip(row, self._texts, strict=True)), vector)
            for row, vector in zip(plain_values(rows, self._names[:-1]), matrix_of(rows), strict=True)
        ]
        # All of them or none: it runs in a transaction.
        self._run(self._connection.executemany(self._upsert, given))

    def close(self) -> None:
        if self._thread is not None:
            try:
                if self._connection is not None:
                    self._run(self._connection.close(timeout=10))
                self._thread.submit(self._runner.close).result()
            finally:
                self._thread.shutdown()
                self._thread = None


def _type_of(field: Any) -> str:
    import pyarrow.types as is_

    kind = field.type
    if field.name == "vector":
        return f"{'halfvec' if is_.is_float16(kind.value_type) else 'vector'}({kind.list_size}) NOT NULL"
    if is_.is_boolean(kind):
        return "boolean"
    name = "bigint" if is_.is_integer(kind) else "double precision" if is_.is_floating(kind) else "text"
    return f"{name} PRIMARY KEY" if field.name == "key" else name


def _as_text(value: Any) -> str | None:
    return None if value is None else str(value)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
