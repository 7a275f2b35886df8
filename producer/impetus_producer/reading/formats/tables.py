"""Documents of Parquet and Arrow files, by pyarrow."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...errors import InvalidRequestError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...documents import Read
    from ..fields import Fields
    from ..places.remote import Readable

TABLE_FORMATS = ("parquet", "arrow")
_ROWS_AT_ONCE = 1024


def check_table(path: Readable, kind: str, fields: Fields) -> int | None:
    """Raises `InvalidRequestError` where the table cannot be read so. Gives its number of rows where it says that."""
    with _opened(path, kind, fields) as (_, rows):
        return rows


def table_documents(path: Readable, kind: str, fields: Fields) -> Iterator[Read]:
    import pyarrow

    number = 0
    try:
        with _opened_schema(path, kind) as schema:
            if fields.id.split(".")[0] not in schema.names and fields.id not in schema.names:
                fields = fields.of_nameless()
        with _opened(path, kind, fields) as (batches, _):
            for batch in batches:
                for record in batch.to_pylist():
                    number += 1
                    document = fields.of_record(record, number, "row")
                    yield document
    except (pyarrow.ArrowException, OSError) as error:
        sentence = f"{str(path)!r} could not be read on: {_first_line(error)}; nothing from here on was read"
        yield fields.failed(sentence, number + 1, place="row", retryable=isinstance(error, OSError))


def column_types(path: Readable, kind: str, names: tuple[str, ...]) -> dict[str, Any]:
    """The Arrow types of the top-level columns among `names`."""
    with _opened_schema(path, kind) as schema:
        return {name: schema.field(name).type for name in names if name in schema.names}


@contextmanager
def _opened(path: Readable, kind: str, fields: Fields) -> Iterator[tuple[Iterator[Any], int | None]]:
    """Batches of the rows with no more columns than are needed."""
    with _reader(path, kind) as reader:
        schema = reader.schema_arrow if kind == "parquet" else reader.schema
        wanted = _checked_columns(schema, fields, str(path))
        if kind == "parquet":
            yield reader.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted), reader.metadata.num_rows
        else:
            yield _slices(reader, wanted), None


@contextmanager
def _opened_schema(path: Readable, kind: str) -> Iterator[Any]:
    with _reader(path, kind) as reader:
        yield reader.schema_arrow if kind == "parquet" else reader.schema


@contextmanager
def _reader(path: Readable, kind: str) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError(f"Reading .{kind}", "files") from None
    with path.open("rb") as file:
        try:
            if kind == "parquet":
                reader = parquet.ParquetFile(file)
            else:
                # A file of record batches begins with a word; a stream of them does not.
                is_file = file.read(6) == b"ARROW1"
                file.seek(0)
                reader = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise InvalidRequestError(f"{str(path)!r} is no {kind} file: {_first_line(error)}") from None
        with reader:
            yield reader


def _slices(reader: Any, wanted: list[str]) -> Iterator[Any]:
    batches = (
        (reader.get_batch(at) for at in range(reader.num_record_batches))
        if hasattr(reader, "num_record_batches")
        else reader
    )
    for batch in batches:
        for at in range(0, batch.num_rows, _ROWS_AT_ONCE):
            yield batch.slice(at, _ROWS_AT_ONCE).select(wanted)


def _checked_columns(schema: Any, fields: Fields, name: str) -> list[str]:
    """The top-level columns that hold the fields."""
    import pyarrow

    wanted = []
    for field in dict.fromkeys((*fields.needed, fields.id)):
        top = field if field in schema.names else field.split(".")[0]
        if schema.names.count(top) > 1:
            raise InvalidRequestError(f"{name!r} has {schema.names.count(top)} columns named {top!r}")
        if top in schema.names:
            wanted.append(top)
        elif field in fields.needed:
            raise InvalidRequestError(f"{name!r} has no column {field!r}; it has {', '.join(schema.names)!r}")
    if fields.id in schema.names and pyarrow.types.is_floating(schema.field(fields.id).type):
        raise InvalidRequestError(
            f"the ids in column {fields.id!r} of {name!r} are fractions: an id is a string or a whole number"
        )
    return list(dict.fromkeys(wanted))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")
