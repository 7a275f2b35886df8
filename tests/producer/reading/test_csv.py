"""CSV and TSV: what is a row, and what only looks like one."""

from __future__ import annotations

import csv
import io
import random
from typing import TYPE_CHECKING

import pytest

from impetus_producer.documents import Document, FailedDocument
from impetus_producer.errors import InvalidRequestError
from impetus_producer.reading.bytes.streams import Stream
from impetus_producer.reading.formats import csv_rows
from impetus_producer.reading.formats.csv_rows import Rows
from impetus_producer.reading.source import open_source

from .files import read, told, write

if TYPE_CHECKING:
    from pathlib import Path


def test_rows_may_span_lines_and_broken_ones_fail_alone(tmp_path: Path) -> None:
    content = (
        b'text,n,id\r\n"one, ""quoted""\r\nand more",1,a\r\nshort\r\ntwo \xff,2,b\r\n\r\nthree,3,\r\n'
        + b"x" * 200_000
        + b",4,d\r\nlong,5,e,\r\n"
    )
    path = write(tmp_path / "d.csv", content)
    documents = read(path)
    assert told(documents)[0] == ("a", 'one, "quoted"\r\nand more')
    assert [document.row for document in documents] == [2, 4, 5, 7, 8, 9]
    assert told(documents)[1] == (None, "line 4: it has 1 field, the header has 3")
    assert told(documents)[2][1].startswith("line 5: this is not UTF-8")
    assert documents[3:5] == [Document(None, "three", 7), Document("d", "x" * 200_000, 8)]
    assert told(documents)[5][1].startswith("line 9: it has 4 fields, the header has 3")
    assert read(path, text_field="n")[0] == Document("a", "1", 2)
    assert read(path, id_field="n", columns=("id",))[0].id == "1"
    assert open_source(str(path)).count() == 7


def test_it_reads_what_the_standard_librarys_writer_writes() -> None:
    chance = random.Random(1)
    for delimiter in ",;\t|":
        rows = [
            ["".join(chance.choice('ab"\n\r ,;\t|é') for _ in range(chance.randrange(8))) for _ in range(3)]
            for _ in range(500)
        ]
        rows = [row for row in rows if row != [""]]
        written = io.StringIO(newline="")
        csv.writer(written, delimiter=delimiter).writerows(rows)
        stream = Stream(io.BytesIO(written.getvalue().encode()), "name", "utf-8")
        assert [row.cells for row in Rows(stream, delimiter)] == rows


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # An unclosed quote that runs into the quotes of later rows.
        ('"a","x\n"b","y"\n"c","z"\n', [("a", "line 2: a quote opens here, and text follows")]),
        ('a,one\nb,"two\nc,"three"\nd,four\n', [("a", "one"), ("b", "line 3: a quote opens here, and text follows")]),
        ('a,"x","y\nb,z\n', [("a", "line 2: a quote opens here that is never closed")]),
        ('"a\nb","x\ny\n', [("a\nb", "line 3: a quote opens here that is never closed")]),
        # Quotes that are not doubled, but all on one line.
        ('a,"say "hi" to me"\nb,two\n', [("a", "line 2: text follows a closing quote"), ("b", "two")]),
        # Within a field that does not begin with one, a quote is a quote.
        ('a,a 5" disk\nb,two\n', [("a", 'a 5" disk'), ("b", "two")]),
        ('a,one\n\n\r\nb,two', [("a", "one"), ("b", "two")]),
        ('a,one,\nb,two\n', [("a", "line 2: it has 3 fields, the header has 2"), ("b", "two")]),
        ('a,one\rb\nc,"th\rree"\r\n', [("a", "line 2: a carriage return stands outside of"), ("c", "th\rree")]),
        ('a, one\n', [("a", " one")]),
        ('a,nul \0 byte\n', [("a", "nul \0 byte")]),
    ],
)  # fmt: skip
def test_quotes_widths_and_line_ends(tmp_path: Path, body: str, expected: list[tuple[str, str]]) -> None:
    found = told(read(write(tmp_path / "d.csv", "id,text\n" + body)))
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, said), (_, wanted) in zip(found, expected, strict=True):
        assert said.startswith(wanted)
        assert said == wanted or said.startswith("line ")


def test_a_quote_that_ran_into_a_later_rows_quotes_names_both_lines(tmp_path: Path) -> None:
    ((_, reason),) = told(read(write(tmp_path / "d.csv", 'id,text\n"a","x\n"b","y"\n')))
    assert reason.startswith("line 2: a quote opens here, and text follows the one that closes it, on line 3")


def test_a_file_of_an_old_mac_ends_its_lines_with_carriage_returns(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", 'id,text\ra,one\rb,"two\r2"\r')
    assert read(path) == [Document("a", "one", 2), Document("b", "two\r2", 3)]


def test_spaces_after_the_headers_commas_are_skipped_in_all_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", 'id, text , n\na, "one, two" , 3\nb,  four, 5\n')
    assert told(read(path, columns=("n",))) == [("a", "one, two"), ("b", "four")]


def test_an_overlong_quoted_field_fails_alone_and_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "_MAX_FIELD_CHARACTERS", 1000)
    path = write(tmp_path / "d.csv", 'id,text\na,"' + "line\n" * 1000 + '"\nb,two\n')
    assert told(read(path)) == [("a", "line 2: a quoted field is longer than 1,000 characters"), ("b", "two")]


def test_a_header_without_the_columns_is_told_before_anything_is_read(tmp_path: Path) -> None:
    for content, sentence in {
        "id,body\n1,x\n": "no column 'text'; its first line names 'id, body'",
        "id\ttext\n1\tx\n": r"state --delimiter '\\t'",
        '"id";"text"\n1;x\n': "state --delimiter ';'",
        "id,text,id\n1,x,2\n": "has 2 columns named 'id'",
        "": "is empty: its first line should name its columns",
        "\n\n": "is empty",
        'id,"text\n1,x\n': "line 1: a quote opens here that is never closed",
    }.items():
        path = write(tmp_path / "d.csv", content)
        with pytest.raises(InvalidRequestError, match=sentence):
            open_source(str(path))
    with pytest.raises(InvalidRequestError, match="no column 'isbn'"):
        read(write(path, "id,text\n"), id_field="isbn")
    assert read(path) == []


def test_without_a_column_of_ids_the_lines_number_is_the_id(tmp_path: Path) -> None:
    assert read(write(tmp_path / "e.csv", "body\nx\n"), text_field="body") == [Document("2", "x", 2)]


def test_columns_go_along(tmp_path: Path) -> None:
    path = write(tmp_path / "d.tsv", "lang\tid\ttext\nde\ta\thallo\n")
    assert read(path, columns=("lang", "id")) == [Document("a", "hallo", 2, None, ("de", "a"))]
    with pytest.raises(InvalidRequestError, match="no column 'year'"):
        read(path, columns=("year",))


def test_a_line_that_cannot_be_held_ends_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impetus_producer.reading.bytes.streams.MAX_LINE_BYTES", 100)
    path = write(tmp_path / "d.csv", "id,text\na,one\nb," + "x" * 200 + "\nc,three\n")
    reason = "line 3: it is longer than 100 bytes; nothing from here on was read"
    assert read(path) == [Document("a", "one", 2), FailedDocument(None, reason, 3)]
