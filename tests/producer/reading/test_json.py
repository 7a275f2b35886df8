"""JSON in lines, in an array and over several lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from impetus_producer.documents import Document, FailedDocument
from impetus_producer.reading.source import open_source

from .files import read, told, write

if TYPE_CHECKING:
    from pathlib import Path


def test_json_lines_give_their_ids_and_texts(tmp_path: Path) -> None:
    lines = [{"id": "ä/1", "text": "one"}, {"id": 2, "text": ""}, {"text": "three"}, {"id": None, "text": "🙂"}]
    path = write(tmp_path / "d.jsonl", "\n".join(json.dumps(line) for line in lines))
    assert read(path) == [
        Document("ä/1", "one", 1),
        Document(2, "", 2),
        Document(None, "three", 3),
        Document(None, "🙂", 4),
    ]
    assert open_source(str(path)).count() == 4


def test_each_broken_line_fails_alone_with_its_number_and_reason(tmp_path: Path) -> None:
    good = b'{"id": "good", "text": "x"}'
    broken = {
        b'{"id": "a", "text"': "this is no JSON: Expecting ':' delimiter",
        b'[1, "text"]': "this is JSON, but no object",
        b'{"id": "c"}': "there is no field 'text'",
        b'{"id": "d", "text": 5}': "the field 'text' is no string",
        b'{"id": "e", "text": null}': "the field 'text' is no string",
        b'{"id": "f", "text": "\xff"}': "this is not UTF-8",
        b'{"id": {}, "text": "x"}': "the id in 'id' is neither a string nor a whole number",
        b'{"id": true, "text": "x"}': "the id in 'id' is neither a string nor a whole number",
        b'{"id": "\\ud800", "text": "x"}': "the id in 'id' is not valid Unicode",
        b'{"id": 1.0, "text": "x"}': "the id in 'id' is 1.0: an id is a string or a whole number",
        b'{"id": NaN, "text": "x"}': "the id in 'id' is nan: an id is a string or a whole number",
        b'{"id": 1, "text": "x", "text": "y"}': "there are two fields 'text'",
        b"[" * 100_000: "this is no JSON",
        b'{"id": ' + b"9" * 5000 + b"}": "this is no JSON",
    }
    path = write(tmp_path / "d.jsonl", b"\n".join([good, *broken, b"", b"  ", good]) + b"\r\n")
    first, *failed, last = read(path)
    assert first == Document("good", "x", 1)
    assert last == Document("good", "x", len(broken) + 4)
    assert [document.id for document in failed][:6] == [None, None, "c", "d", "e", None]
    for number, (document, reason) in enumerate(zip(failed, broken.values(), strict=True), 2):
        assert isinstance(document, FailedDocument)
        assert document.row == number
        assert document.reason.startswith(f"line {number}: {reason}")


def test_an_id_field_asked_for_by_name_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "d.ndjson", '{"key": "k", "body": "x"}\n{"body": "y"}\n')
    assert read(path, id_field="key", text_field="body") == [
        Document("k", "x", 1),
        FailedDocument(None, "line 2: there is no id in 'key'", 2),
    ]


def test_nested_fields_are_found_by_their_path_and_a_field_of_that_very_name_first(tmp_path: Path) -> None:
    lines = [
        {"meta": {"id": 7, "tags": ["x"]}, "doc": {"body": "inside"}},
        {"meta.id": 8, "doc.body": "outside", "doc": {"body": "inside"}},
        {"doc": "no object"},
    ]
    path = write(tmp_path / "d.jsonl", "\n".join(json.dumps(line) for line in lines))
    assert read(path, id_field="meta.id", text_field="doc.body", columns=("meta.tags",)) == [
        Document(7, "inside", 1, None, (["x"],)),
        Document(8, "outside", 2, None, (None,)),
        FailedDocument(None, "line 3: there is no id in 'meta.id'", 3),
    ]


@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
def test_arrays_and_printed_objects_are_read_with_the_lines_they_stand_on(tmp_path: Path, name: str) -> None:
    records = [{"id": number, "text": "x\n" * number + '\\" 日本'} for number in range(200)]
    expected = [(record["id"], record["text"]) for record in records]
    for content in (
        json.dumps(records),
        json.dumps(records, indent=2),
        "\n \n" + json.dumps(records, indent="\t").replace("\n", "\r\n") + "\n\n",
        "\n".join(json.dumps(record, indent=2) for record in records),
        "\n".join(json.dumps(record) for record in records),
    ):
        path = write(tmp_path / name, content)
        assert told(read(path)) == expected
    lines = content.splitlines()
    assert [document.row for document in read(path)] == list(range(1, len(lines) + 1))
    assert [document.row for document in read(write(path, json.dumps(records, indent=2)))][:2] == [2, 6]


@pytest.mark.parametrize(
    ("content", "count", "reason"),
    [
        ('[{"id": 1, "text": "a"},\n {"id": 2, "te', 1, "line 2: this is no JSON: Unterminated string"),
        ('[{"id": 1, "text": "a"}\n', 1, "line 2: the JSON array is not closed"),
        ('[{"id": 1, "text": "a"}\n {"id": 2}]', 1, "line 2: this is no JSON array: Expecting ',' or ']'"),
        ('[{"id": 1, "text": "a"}]\n{"id": 2}', 1, "line 2: there is more after the end of the array"),
        ('[{"id": 1, "text": "a"},\n]', 1, "line 2: this is no JSON: Expecting value"),
        ('["a", "b", "c"]', 0, "line 1: this is a JSON array, but not of objects"),
        ('{\n "id": 1,\n "text": "a"\n}\n{\n "id": 2,\n}', 1, "line 7: this is no JSON"),
        ('[\n{"id": 1, "text": "a"},\n[1],\n5\n', 1, "line 3: this is JSON, but no object"),
        ('{"id": 1, "text": "a"},\n{"id": 2, "text": "b"},\n', 1, "line 1: a comma follows the object: put brackets"),
    ],
)
def test_a_broken_array_is_told_once_and_not_line_by_line(
    tmp_path: Path, content: str, count: int, reason: str
) -> None:
    documents = read(write(tmp_path / "d.json", content))
    assert [isinstance(document, Document) for document in documents[: count + 1]] == [True] * count + [False]
    assert told(documents)[count][1].startswith(reason)
    assert len(documents) <= count + 3


def test_what_no_reader_takes_fails_alone_on_the_first_line_too(tmp_path: Path) -> None:
    deep = '{"id": 1, "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
    long = '{"id": ' + "9" * 5000 + ', "text": "a"}'
    documents = told(read(write(tmp_path / "d.jsonl", f'{deep}\n{long}\n{{"id": 3, "text": "c"}}\n')))
    assert documents == [
        (None, "line 1: this is no JSON that can be read: it is nested too deep"),
        (None, "line 2: this is no JSON that can be read: a number in it has too many digits"),
        (3, "c"),
    ]


def test_an_empty_array_has_no_documents(tmp_path: Path) -> None:
    assert read(write(tmp_path / "d.json", " [ \n ] \n")) == []


def test_values_longer_than_a_piece_are_read_whole(tmp_path: Path) -> None:
    texts = ["x" * size + "é" for size in (1, 65_530, 65_536, 300_000, 1_000_000, 3)]
    path = write(tmp_path / "d.json", json.dumps([{"id": at, "text": text} for at, text in enumerate(texts)]))
    assert told(read(path)) == list(enumerate(texts))
