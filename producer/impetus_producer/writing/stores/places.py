"""Which store an output's name means, and a store as a sink.

    folder/table.lance            LanceDB
    file.sqlite, file.sqlite#table    SQLite with sqlite-vec; also .sqlite3 and .db
    postgresql://user@host/database?table=name   Postgres with pgvector

Without a name the table is `documents`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from ...errors import ImpetusError, InvalidRequestError
from ...shown import without_password
from ..rows import Layout, Rows, arrow_table
from ..sinks import Sink
from .lance import Lance
from .pgvector import PgVector
from .sqlite_vec import SqliteVec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .interface import VectorStore

STORE_ENDINGS: dict[str, type[VectorStore]] = {
    ".lance": Lance,
    ".sqlite": SqliteVec,
    ".sqlite3": SqliteVec,
    ".db": SqliteVec,
}
_SCHEMES = ("postgresql", "postgres")
_TABLE = "documents"


@dataclass(frozen=True, slots=True)
class StorePlace:
    """`shown`: its name without a password. `beside`: the path beside which a run keeps what it has."""

    kind: type[VectorStore]
    address: str
    table: str
    shown: str
    beside: Path


def store_place(name: str) -> StorePlace | None:
    """None for a name that is none of a store."""
    if name.partition("://")[0] in _SCHEMES:
        parts = urlsplit(name)
        options = dict(parse_qsl(parts.query))
        table = options.pop("table", _TABLE)
        address = urlunsplit(parts._replace(query=urlencode(options)))
        return StorePlace(PgVector, address, table, without_password(name), Path(table.replace("/", "_")))
    file, _, table = name.partition("#")
    path = Path(file)
    kind = STORE_ENDINGS.get(path.suffix.lower())
    if kind is None:
        return None
    if kind is Lance:
        return StorePlace(kind, str(path.parent), path.stem, name, path)
    return StorePlace(kind, file, table or _TABLE, name, path)


class StoreSink(Sink):
    """Rows become visible as they are written; what was written once is written again by a run that goes on."""

    def __init__(self, place: StorePlace, layout: Layout) -> None:
        self._place = place
        self._layout = layout
        self._store = place.kind(place.address, place.table)
        self._opened = False

    @staticmethod
    def require() -> None:
        """What it takes is asked of the store."""

    @classmethod
    def check_for(cls, kind: type[VectorStore], layout: Layout) -> None:
        cls.check(replace(layout, precision="float32"))
        if layout.precision not in kind.precisions:
            raise InvalidRequestError(
                f"this store holds no {layout.precision} vectors: --precision is one of {', '.join(kind.precisions)}"
            )

    def write(self, rows: Rows) -> None:
        table = arrow_table(rows, self._layout, with_keys=True)
        with self._errors():
            if not self._opened:
                self._store.open(table.schema)
                self._opened = True
            self._store.upsert(_last_of_each_key(table))

    def finish(self) -> None:
        with self._errors():
            self._store.close()

    def publish(self) -> None:
        """It is visible already."""

    def set_aside(self) -> Path | None:
        return None

    def close(self) -> None:
        with self._errors():
            self._store.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ImpetusError:
            raise
        except Exception as error:
            said = str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__
            raise ImpetusError(f"{self._place.shown} takes no rows: {said}") from error


def _last_of_each_key(table: Any) -> Any:
    last = {key: at for at, key in enumerate(table.column("key").to_pylist())}
    return table if len(last) == table.num_rows else table.take(sorted(last.values()))
