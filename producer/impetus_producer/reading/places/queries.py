"""Documents that a database answers a query with, through SQLAlchemy: some thousand rows at a time."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ...errors import InvalidRequestError, MissingExtraError
from ...shown import without_password

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ...documents import Read
    from ..fields import Fields

_ROWS_AT_ONCE = 1000


class Query:
    """What a database answers, asked at once and read as it is needed; read again, it is asked again.

    Nothing that the query changes is committed. Raises `InvalidRequestError` where the database does not answer it, or
    not with these columns, and `MissingExtraError`.
    """

    def __init__(self, url: str, query: str, fields: Fields) -> None:
        self._url, self._query, self._fields = url, query, fields
        self._asked: tuple[ExitStack, Any] | None = self._ask()

    def _ask(self) -> tuple[ExitStack, Any]:
        with ExitStack() as opened:
            result = opened.enter_context(_answer(self._url, self._query))
            _check_columns(list(result.keys()), self._fields)
            return opened.pop_all(), result

    def documents(self) -> Iterator[Read]:
        """In the order in which the database answers; without ORDER BY that may be another one each time."""
        number, fields = 0, self._fields
        try:
            opened, result = self._asked or self._ask()
            self._asked = None
            with opened:
                if fields.id.split(".")[0] not in result.keys():  # noqa: SIM118 - this is no mapping
                    fields = fields.of_nameless()
                for row in result:
                    number += 1
                    yield fields.of_record(_record(row._mapping), number, "row")
        except InvalidRequestError as error:
            reason = f"{error}; nothing from here on was read"
            yield fields.failed(reason, number + 1, place="row", retryable=True)


@contextmanager
def _answer(url: str, query: str) -> Iterator[Any]:
    try:
        import sqlalchemy
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
    except ImportError:
        raise MissingExtraError("Reading from a database", "sql") from None
    try:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    except (ArgumentError, NoSuchModuleError) as error:
        raise InvalidRequestError(f"--sql {without_password(url)!r}: {_told(error)}") from None
    except ImportError as error:
        raise InvalidRequestError(f"--sql {without_password(url)!r}: its driver is not installed: {error}") from None
    # SQLite would make an empty database of whatever name.
    file = engine.url.database if engine.url.get_backend_name() == "sqlite" else None
    if file not in (None, "", ":memory:") and not file.startswith("file:") and not os.path.exists(file):
        raise InvalidRequestError(f"--sql {without_password(url)!r}: there is no such file")
    try:
        with engine.connect().execution_options(stream_results=True, max_row_buffer=_ROWS_AT_ONCE) as connection:
            result = connection.exec_driver_sql(query)
            if not result.returns_rows:
                raise InvalidRequestError("--sql: the query answers with no rows: write a SELECT")
            with result:
                yield result
    except SQLAlchemyError as error:
        raise InvalidRequestError(f"--sql {without_password(url)!r}: {_told(error)}") from error
    finally:
        engine.dispose()


def _check_columns(names: list[str], fields: Fields) -> None:
    for name in dict.fromkeys((*fields.needed, fields.id)):
        if names.count(name) > 1:
            raise InvalidRequestError(f"--sql: the query has {names.count(name)} columns named {name!r}")
        # A path leads into a column of JSON.
        if name in fields.needed and name not in names and name.split(".")[0] not in names:
            raise InvalidRequestError(
                f"--sql: the query has no column {name!r}; it has {', '.join(names)!r}: write `select ... as {name}`"
            )


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, UUID) else value for name, value in row.items()}


def _told(error: Exception) -> str:
    # What SQLAlchemy adds to a driver's words: the query, and where to read of the error.
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split("\n(Background", 1)[0].split())[:300].rstrip(".")
