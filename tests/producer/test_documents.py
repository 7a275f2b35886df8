"""Every kind of input, whole and broken."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest

from impetus_producer.documents import Document, FailedDocument, open_source
from impetus_producer.errors import InvalidRequestError

if TYPE_CHECKING:
    from pathlib import Path


def read(name: Path | str, stdin: bytes = b"", **options: str) -> list[Document | FailedDocument]:
    return list(open_source(str(name), stdin=io.BytesIO(stdin), **options))  # type: ignore[arg-type]


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_json_lines_give_their_ids_and_texts(tmp_path: Path) -> None:
    lines = [{"id": "ä/1", "text": "one"}, {"id": 2, "text": ""}, {"text": "three"}, {"id": None, "text": "🙂"}]
    path = write(tmp_path / "d.jsonl", "\n".join(json.dumps(line) for line in lines))
    assert read(path) == [Document("ä/1", "one"), Document("2", ""), Document("3", "three"), Document("4", "🙂")]
    assert open_source(str(path)).count() == 4


def test_each_broken_json_line_fails_alone_with_its_line_and_reason(tmp_path: Path) -> None:
    good = b'{"id": "good", "text": "x"}'
    broken = {
        b'{"id": "a", "text"': "line 2: this is no JSON: Expecting ':' delimiter",
        b'[1, "text"]': "line 3: this is JSON, but no object",
        b'{"id": "c"}': "line 4: there is no field 'text'",
        b'{"id": "d", "text": 5}': "line 5: the field 'text' is no string",
        b'{"id": "e", "text": null}': "line 6: the field 'text' is no string",
        b'{"id": "f", "text": "\xff"}': "line 7: this is not UTF-8",
        b'{"id": {}, "text": "x"}': "line 8: the id in 'id' is neither a string nor a number",
        b'{"id": "\\ud800", "text": "x"}': "line 9: the id in 'id' is not valid Unicode",
        b"[" * 100_000: "line 10: this is no JSON",
        b'{"id": ' + b"9" * 5000 + b"}": "line 11: this is no JSON",
    }
    path = write(tmp_path / "d.jsonl", b"\n".join([good, *broken, b"", b"  ", good]) + b"\n")
    first, *failed, last = read(path)
    assert first == last == Document("good", "x")
    assert [document.id for document in failed] == ["2", "3", "c", "d", "e", "7", "8", "9", "10", "11"]
    for document, reason in zip(failed, broken.values(), strict=True):
        assert isinstance(document, FailedDocument)
        assert document.reason.startswith(reason)


def test_an_id_field_asked_for_by_name_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "d.ndjson", '{"key": "k", "body": "x"}\n{"body": "y"}\n')
    assert read(path, id_field="key", text_field="body") == [
        Document("k", "x"),
        FailedDocument("2", "line 2: there is no id in 'key'"),
    ]


def test_a_text_file_has_one_document_a_line_also_an_empty_one(tmp_path: Path) -> None:
    path = write(tmp_path / "d.txt", b"\xef\xbb\xbfone\r\n\ntwo \xff\nthree\x0bis\xe2\x80\xa8one line")
    assert read(path) == [
        Document("1", "one"),
        Document("2", ""),
        FailedDocument("3", "line 3: this is not UTF-8, from byte 5 on"),
        Document("4", "three\x0bis\u2028one line"),
    ]
    assert open_source(str(path)).count() == 4


def test_an_empty_file_has_no_documents(tmp_path: Path) -> None:
    for name in ("d.txt", "d.jsonl"):
        assert read(write(tmp_path / name, b"")) == []
        assert open_source(str(tmp_path / name)).count() == 0


def test_csv_rows_may_span_lines_and_broken_ones_fail_alone(tmp_path: Path) -> None:
    content = (
        b'text,n,id\n"one, ""quoted""\nand more",1,a\nshort\ntwo \xff,2,b\n\nthree,3,\n' + b"x" * 200_000 + b",4,d\n"
    )
    path = write(tmp_path / "d.csv", content)
    assert read(path) == [
        Document("a", 'one, "quoted"\nand more'),
        Document("4", "short"),
        FailedDocument("b", "line 5: this is not UTF-8"),
        Document("7", "three"),
        Document("d", "x" * 200_000),
    ]
    assert read(path, text_field="n")[1] == FailedDocument("4", "line 4: there is no column 'n'")
    assert read(path, id_field="n")[0].id == "1"
    assert open_source(str(path)).count() == 6


def test_csv_without_the_column_is_told_before_anything_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "id,body\n1,x\n")
    with pytest.raises(InvalidRequestError, match="no column 'text'; its first line names 'id, body'"):
        open_source(str(path))
    with pytest.raises(InvalidRequestError, match="no column 'isbn'"):
        open_source(str(path), text_field="body", id_field="isbn")
    assert read(write(tmp_path / "e.csv", "body\nx\n"), text_field="body") == [Document("2", "x")]


def test_a_folder_gives_its_text_files_in_order_by_their_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b/c.RST", "a.txt", "image.png", ".hidden.txt", ".git/x.txt"):
        write(tmp_path / name, f"text of {name}")
    write(tmp_path / "a/bad.txt", b"\xff\xfe")
    write(tmp_path / "big.txt", b"x" * 10_000_001)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    documents = read(tmp_path)
    assert [document.id for document in documents] == [
        "a.txt",
        "b.txt",
        "big.txt",
        "gone.txt",
        "a/bad.txt",
        "a/z.md",
        "a/b/c.RST",
    ]
    assert documents[0] == Document("a.txt", "text of a.txt")
    assert [type(document) for document in documents[2:5]] == [FailedDocument] * 3
    assert open_source(str(tmp_path)).count() == 7


def test_a_folder_without_text_files_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"no text files .* \.md"):
        open_source(str(tmp_path))


def test_standard_input_is_json_when_its_first_line_opens_an_object() -> None:
    assert read("-", b'{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}') == [Document("a", "x"), Document("b", "y")]
    assert read("-", b"plain\n{not json}\n") == [Document("1", "plain"), Document("2", "{not json}")]
    assert read("-", b'{"id": "a"}\n', input_format="txt") == [Document("1", '{"id": "a"}')]
    assert read("-", b"id,text\n7,x\n", input_format="csv") == [Document("7", "x")]
    assert read("-", b"") == []
    assert open_source("-", stdin=io.BytesIO()).count() is None


def test_standard_input_is_read_as_it_is_needed() -> None:
    class Endless(io.BytesIO):
        def readline(self, size: int | None = -1) -> bytes:
            return b"again\n"

    source = iter(open_source("-", stdin=Endless()))
    assert [next(source).id for _ in range(3)] == ["1", "2", "3"]


def test_an_ending_that_says_nothing_asks_for_the_format(tmp_path: Path) -> None:
    path = write(tmp_path / "d.data", "x\n")
    with pytest.raises(InvalidRequestError, match="state --input-format"):
        open_source(str(path))
    assert read(path, input_format="txt") == [Document("1", "x")]


def test_a_file_that_cannot_be_read_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="No such file"):
        open_source(str(tmp_path / "no.txt"))
