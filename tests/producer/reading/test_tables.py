"""Parquet and Arrow files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from impetus_producer.documents import Document, FailedDocument
from impetus_producer.errors import InvalidRequestError, MissingExtraError
from impetus_producer.reading.source import ReadingOptions, open_source

from .files import read, told, write

if TYPE_CHECKING:
    from pathlib import Path


def write_table(path: Path, table: Any) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=700)
    elif path.name.startswith("stream"):
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    else:
        feather.write_feather(table, str(path))
    return path


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.feather", "stream.arrow"])
def test_a_table_gives_its_rows_with_the_types_of_their_ids(tmp_path: Path, name: str) -> None:
    count = 3000
    table = pa.table(
        {
            "id": pa.array(range(count), pa.int32()),
            "text": pa.array([f"text {number} ü" for number in range(count - 1)] + [None], pa.large_string()),
            "doc": [{"body": f"body {number}"} for number in range(count)],
            "year": pa.array([1900 + number % 100 for number in range(count)], pa.int16()),
            "unused": [b"x"] * count,
        }
    )
    path = write_table(tmp_path / name, table)
    source = open_source(str(path), ReadingOptions(columns=("year",)))
    *documents, last = source
    assert documents == [
        Document(number, f"text {number} ü", number + 1, None, (1900 + number % 100,)) for number in range(count - 1)
    ]
    assert last == FailedDocument(count - 1, f"row {count}: the field 'text' is no string", count)
    assert source.column_types() == {"year": pa.int16()}
    assert source.count() == (count if name == "t.parquet" else None)
    assert told(read(path, text_field="doc.body", id_field="doc.body"))[5] == ("body 5", "body 5")


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
def test_a_table_that_cannot_be_read_so_is_told_at_once(tmp_path: Path, name: str) -> None:
    table = pa.table({"id": [1.0, 2.0], "text": ["a", "b"]})
    for options, sentence in (
        ({}, "the ids in column 'id' .* are fractions"),
        ({"text_field": "body"}, "no column 'body'; it has 'id, text'"),
        ({"columns": ("year",)}, "no column 'year'"),
        ({"encoding": "latin-1", "id_field": "text"}, "--encoding has no effect"),
    ):
        with pytest.raises(InvalidRequestError, match=sentence):
            read(write_table(tmp_path / name, table), **options)
    twice = pa.table([["a"], ["b"]], names=["text", "text"])
    if name == "t.parquet":
        with pytest.raises(InvalidRequestError, match="2 columns named 'text'"):
            read(write_table(tmp_path / name, twice))
    for content in (b"", b"plain text, and no table"):
        with pytest.raises(InvalidRequestError, match=r"is no (parquet|arrow) file"):
            read(write(tmp_path / name, content))


def test_of_a_table_without_ids_the_rows_number_is_the_id(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", pa.table({"text": ["a", "b"]}))
    assert read(path) == [Document("1", "a", 1), Document("2", "b", 2)]


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    for name in ("t.parquet", "t.arrow"):
        with pytest.raises(MissingExtraError, match=rf"Reading \.{name[2:]} needs the 'files' extra"):
            read(write(tmp_path / name, b"x"))
