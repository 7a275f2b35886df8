"""SQLite with sqlite-vec: a table of the rows, and a virtual one, `<table>_vectors`, of their keys and vectors.

By apsw, as the SQLite of many Pythons loads no extension.
"""

from __future__ import annotations

from typing import Any

from ...errors import MissingExtraError
from .interface import VectorStore, matrix_of, plain_values


class SqliteVec(VectorStore):
    _connection: Any = None

    @staticmethod
    def require() -> None:
        try:
            import apsw  # noqa: F401 - is it there
            import pyarrow  # noqa: F401
            import sqlite_vec  # noqa: F401
        except ImportError:
            raise MissingExtraError("Writing to SQLite with sqlite-vec", "sqlite-vec") from None

    def open(self, schema: Any) -> None:
        import apsw
        import sqlite_vec

        self._connection = apsw.Connection(self.address)
        self._connection.set_busy_timeout(60_000)
        self._connection.enable_load_extension(True)
        self._connection.load_extension(sqlite_vec.loadable_path())
        self._connection.enable_load_extension(False)
        self._names = [name for name in schema.names if name != "vector"]
        columns = ", ".join(f"{_quoted(name)}{' PRIMARY KEY' if name == 'key' else ''}" for name in self._names)
        width = schema.field("vector").type.list_size
        self._vectors = _quoted(f"{self.table}_vectors")
        with self._connection as run:
            run.execute(f"CREATE TABLE IF NOT EXISTS {_quoted(self.table)} ({columns})")
            index = f"vec0(key TEXT PRIMARY KEY, vector float[{width}])"
            run.execute(f"CREATE VIRTUAL TABLE IF NOT EXISTS {self._vectors} USING {index}")

    def upsert(self, rows: Any) -> None:
        keys = rows.column("key").to_pylist()
        columns, marks = ", ".join(map(_quoted, self._names)), ", ".join("?" * len(self._names))
        with self._connection as run:
            run.executemany(
                f"INSERT OR REPLACE INTO {_quoted(self.table)} ({columns}) VALUES ({marks})",
                plain_values(rows, self._names),
            )
            run.executemany(f"DELETE FROM {self._vectors} WHERE key = ?", ((key,) for key in keys))
            vectors = ((key, vector.tobytes()) for key, vector in zip(keys, matrix_of(rows), strict=True))
            run.executemany(f"INSERT INTO {self._vectors} (key, vector) VALUES (?, ?)", vectors)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
