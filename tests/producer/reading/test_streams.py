"""Encodings, line ends, compression: whatever the bytes are packed in, the documents are the same."""

from __future__ import annotations

import codecs
import gzip
import io
import os
from typing import TYPE_CHECKING

import pyarrow
import pytest

from impetus_producer.documents import Document, FailedDocument
from impetus_producer.errors import InvalidRequestError, MissingExtraError
from impetus_producer.reading.bytes import streams
from impetus_producer.reading.bytes.streams import Stream
from impetus_producer.reading.source import ReadingOptions, open_source

from .files import read, told, write

if TYPE_CHECKING:
    from pathlib import Path

CSV = "id,text\na,grüße 日本\nb,\U0001f642 \u0a0a\u0d0a\nc,last\n"
ROWS = [("a", "grüße 日本"), ("b", "\U0001f642 \u0a0a\u0d0a"), ("c", "last")]


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, mark: bytes, encoding: str, end: str) -> None:
    content = CSV.replace("\n", end)
    path = write(tmp_path / "d.csv", mark + content.encode(encoding))
    assert told(read(path)) == ROWS
    assert told(read(path, encoding=encoding.removesuffix("-le").removesuffix("-be"))) == ROWS
    whole = write(tmp_path / "d.md", mark + content.encode(encoding))
    assert read(whole) == [Document(str(whole), content)]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "gb18030", "utf-8-sig"])
def test_a_named_encoding_is_read_without_a_mark(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "d.csv", CSV.encode("utf-16-le" if encoding == "utf-16" else encoding))
    assert told(read(path, encoding=encoding)) == ROWS


def test_lines_of_two_bytes_a_character_are_the_same_whatever_pieces_they_are_read_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "".join("x\u0a0a" * (number % 7) + f"\u0d0a{number}\n" for number in range(200)) + "no end"
    monkeypatch.setattr(streams, "_CHUNK_BYTES", 10)
    lines = Stream(io.BytesIO(text.encode("utf-16-be")), "name", "utf-16-be").lines()
    assert [line.content for line in lines] == text.split("\n")


def test_utf16_without_a_mark_is_recognised_and_refused(tmp_path: Path) -> None:
    for encoding in ("utf-16-le", "utf-16-be"):
        path = write(tmp_path / "d.txt", "plain words\nof text\n".encode(encoding))
        with pytest.raises(InvalidRequestError, match=f"looks like UTF-16 .* state --encoding {encoding}"):
            open_source(str(path))
        assert [name for name, _ in told(read(path, encoding=encoding))] == ["1", "2"]


def test_bytes_that_are_not_what_was_said_fail_alone(tmp_path: Path) -> None:
    content = b"one\r\n\ntwo \xff\ncaf\xe9 \x93quoted\x94\nthree\x0bis\xe2\x80\xa8one"
    path = write(tmp_path / "d.txt", codecs.BOM_UTF8 + content)
    documents = read(path)
    assert [documents[at] for at in (0, 1, 4)] == [
        Document("1", "one", 1),
        Document("2", "", 2),
        Document("5", "three\x0bis\u2028one", 5),
    ]
    assert told(documents)[2][1].startswith("line 3: this is not UTF-8, from byte 5 on: name its encoding with ")
    assert "such as cp1252, which reads 'café “quoted”'" in told(documents)[3][1]
    assert open_source(str(path)).count() == 5
    cut = write(tmp_path / "e.txt", codecs.BOM_UTF16_LE + "one\ntwo".encode("utf-16-le")[:-1])
    assert read(cut)[0] == Document("1", "one", 1)
    assert told(read(cut))[1][1].startswith("line 2: this is not UTF-16-LE")
    ascii_only = write(tmp_path / "f.txt", "plain\nü\n")
    assert told(read(ascii_only, encoding="ascii"))[1][1].startswith("line 2: this is not ASCII, from byte 1 on")


def test_an_encoding_that_cannot_be_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "d.txt", codecs.BOM_UTF16_LE + "one".encode("utf-16-le"))
    with pytest.raises(InvalidRequestError, match="begins with the mark of UTF-16-LE, so it is not latin-1"):
        read(path, encoding="latin-1")
    path = write(path, "one")
    for name in ("no-such", "base64", "rot13", "idna", "undefined", "\0", "punycode"):
        with pytest.raises(InvalidRequestError, match="is no encoding of text files"):
            read(path, encoding=name)


@pytest.mark.parametrize(("packing", "name"), [("gzip", "d.csv.gz"), ("zstd", "d.CSV.zst")])
def test_compressed_files_are_read_and_damage_ends_them_with_a_failure(tmp_path: Path, packing: str, name: str) -> None:
    rows = [f"id-{number},{os.urandom(40).hex()}\n" for number in range(5000)]
    packed = pyarrow.compress("".join(["id,text\n", *rows]).encode(), codec=packing, asbytes=True)
    path = write(tmp_path / name, packed)
    documents = read(path)
    assert [f"{document.id},{document.text}\n" for document in documents if isinstance(document, Document)] == rows
    assert open_source(str(path)).count() is None
    *whole, last = read(write(path, packed[: len(packed) * 2 // 3]))
    assert 1000 < len(whole) < 5000
    assert isinstance(last, FailedDocument)
    assert last.reason.endswith("data are damaged or end too early; nothing from here on was read")
    with pytest.raises(InvalidRequestError, match="does not hold the compressed data that its ending says"):
        read(write(path, "id,text\na,plain\n"))


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_what_stands_before_damage_in_a_small_packed_file_is_read(tmp_path: Path, ending: str) -> None:
    data = b"".join(b'{"id": "%d", "text": "%d"}\n' % (number, number) for number in range(5000))
    pack = gzip.compress if ending == ".gz" else lambda data: pyarrow.compress(data, codec="zstd", asbytes=True)
    whole = pack(data)
    *good, last = read(write(tmp_path / f"junk.jsonl{ending}", whole + b"junk after the end"))
    assert len(good) > 4000
    assert all(isinstance(document, Document) for document in good)
    assert isinstance(last, FailedDocument)
    assert last.reason.endswith("data are damaged or end too early; nothing from here on was read")
    assert not last.retryable
    both = read(write(tmp_path / f"two.jsonl{ending}", pack(b'{"text": "a"}\n') + pack(b'{"text": "b"}\n')))
    assert [text for _, text in told(both)] == ["a", "b"]


def test_several_members_of_one_gzip_file_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "d.txt.gz", gzip.compress(b"one\n", mtime=0) + gzip.compress(b"two\n"))
    assert told(read(path)) == [("1", "one"), ("2", "two")]


def test_without_a_library_for_zstandard_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("compression", "zstandard", "pyarrow"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingExtraError, match=r"Reading \.zst needs the 'files' extra"):
        read(write(tmp_path / "d.txt.zst", b"x"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gzip.compress(b"one\n", mtime=0), "gzip data: end its name in .gz"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"PAR1\x15", "a Parquet file: end its name in .parquet"),
    ],
)
def test_what_is_no_text_is_named_and_refused(tmp_path: Path, content: bytes, what: str) -> None:
    for name in ("d.txt", "d.csv", "d.jsonl"):
        with pytest.raises(InvalidRequestError, match=what):
            open_source(str(write(tmp_path / name, content)))
    with pytest.raises(InvalidRequestError, match=f"'standard input' holds {what}"):
        read("-", content)


def test_an_empty_line_first_is_a_document_only_where_every_line_is(tmp_path: Path) -> None:
    assert told(read(write(tmp_path / "d.csv", "\n\r\nid,text\na,one\n"))) == [("a", "one")]
    assert read(write(tmp_path / "d.txt", "\none\n")) == [Document("1", "", 1), Document("2", "one", 2)]


def test_a_line_too_long_to_be_held_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 100)
    text = "one\n" + "x" * 350 + "\nthree\n"
    failed = FailedDocument("2", "line 2: it is longer than 100 bytes", 2)
    for encoding in ("utf-8", "utf-16-le"):
        path = write(tmp_path / "d.txt", text.encode(encoding))
        monkeypatch.setattr(streams, "_CHUNK_BYTES", 64)
        monkeypatch.setattr(streams, "_HEAD_BYTES", 16)
        assert read(path, encoding=encoding) == [Document("1", "one", 1), failed, Document("3", "three", 3)]


def test_a_read_that_fails_ends_the_input_and_is_worth_trying_again() -> None:
    class Failing(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    source = open_source("-", ReadingOptions("txt"), stdin=Failing(b"1\n2\n3\n4\n5\n6\n7\n"))
    *_, last = source
    assert last == FailedDocument("7", "line 7: Input/output error; nothing from here on was read", 7, retryable=True)
