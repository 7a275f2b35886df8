"""What is named on a command line: files, patterns, pipes, and what cannot be read."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from impetus_producer.documents import Document, FailedDocument
from impetus_producer.errors import InvalidRequestError
from impetus_producer.reading.source import ReadingOptions, open_source

from .files import read, told, write

if TYPE_CHECKING:
    from pathlib import Path


def test_an_empty_file_has_no_documents(tmp_path: Path) -> None:
    for name in ("d.txt", "d.jsonl", "d.json", "d.txt.gz"):
        assert read(write(tmp_path / name, b"")) == []
    assert open_source(str(tmp_path / "d.txt")).count() == 0


def test_standard_input_is_guessed_by_its_first_lines_and_the_guess_is_said() -> None:
    def guessed(stdin: bytes) -> str:
        (note,) = open_source("-", stdin=io.BytesIO(stdin)).notes
        return note.removeprefix("Reading standard input as ").partition(",")[0]

    assert guessed(b'\n {"id": 1, "text": "x"}\n') == "JSON"
    assert guessed(b"[\n") == "JSON"
    assert guessed(b"{\n") == "JSON"
    assert guessed(b'"id","text"\n') == "CSV"
    assert guessed(b"id\ttext\n") == "TSV"
    assert guessed(b"") == "one document a line"
    for lines in (
        b"one\ntwo\n",
        b"{not json}\n",
        b"[1] a note\n",
        b"Hello, world\n",
        b"a x, b\nc\nd, e, f\n",
        b"t\xff\n",
    ):
        assert guessed(lines) == "one document a line"
    assert told(read("-", b'{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}')) == [("a", "x"), ("b", "y")]
    assert read("-", b"plain\n{not json}\n") == [Document("1", "plain", 1), Document("2", "{not json}", 2)]


@pytest.mark.parametrize(
    ("stdin", "what"),
    [
        (b"isbn,blurb\nx,one\n", "CSV without a column 'text'"),
        (b"title,body\na,hello, my dear, friend\nb,world\n", "CSV without a column 'text'"),
        (b"1;a phrase\n2;another one\n", "CSV without"),
        (b"text\none\n", "CSV of one column, 'text'"),
        (b"<html>\n", "XML or HTML"),
        (b"a binary\0 thing\n", "zero bytes"),
    ],
)
def test_standard_input_that_may_be_something_else_is_refused_unless_it_is_named(stdin: bytes, what: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"standard input looks like .*{what}.*state --input-format"):
        read("-", stdin)
    assert len(read("-", stdin, input_format="txt")) == stdin.count(b"\n")


def test_a_named_format_is_not_guessed() -> None:
    source = open_source("-", ReadingOptions("txt"), stdin=io.BytesIO(b'{"id": "a"}\n'))
    assert source.notes == ()
    assert list(source) == [Document("1", '{"id": "a"}', 1)]
    assert read("-", b"id,text\n7,x\n", input_format="csv") == [Document("7", "x", 2)]
    assert open_source("-", stdin=io.BytesIO()).count() is None
    with pytest.raises(InvalidRequestError, match="not read from a pipe"):
        read("-", b"PAR1", input_format="parquet")


def test_standard_input_is_read_as_it_is_needed() -> None:
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            buffer[:6] = b"again\n"
            return 6

    source = iter(open_source("-", stdin=io.BufferedReader(Endless())))  # type: ignore[type-var]
    assert [next(source).id for _ in range(3)] == ["1", "2", "3"]


def test_a_pipe_is_read_once_and_by_its_contents(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("id,text\na,one\n"))
    writer.start()
    source = open_source(str(tmp_path / "pipe"))
    assert told(list(source)) == [("a", "one")]
    assert source.notes[0].endswith("as CSV, by its first line; --input-format says otherwise.")
    assert not source.rereadable
    writer.join()


def test_an_ending_that_says_nothing_asks_for_the_format(tmp_path: Path) -> None:
    for name in ("d.data", "d", "d.gz", "d.md.gz"):
        path = write(tmp_path / name, "x\n")
        with pytest.raises(InvalidRequestError, match="state --input-format"):
            open_source(str(path))
    assert read(tmp_path / "d.data", input_format="txt") == [Document("1", "x", 1)]


def test_what_cannot_be_read_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    for name, sentence in {
        "no.txt": "No such file",
        "gone.txt": "No such file",
        "loop.csv": "Too many levels of symbolic links",
        "no.txt/x.csv": "No such file",
        "x" * 300 + ".csv": "File name too long",
    }.items():
        with pytest.raises(InvalidRequestError, match=f"cannot be read: {sentence}"):
            open_source(str(tmp_path / name))


def test_a_file_without_permission_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "d.csv", "id,text\n")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    # The tests may run as root, whom no mode keeps out.
    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(InvalidRequestError, match=r"d\.csv' cannot be read: Permission denied"):
        open_source(str(path))


def test_a_file_that_goes_meanwhile_is_one_failure(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, "x\n") for name in ("a.txt", "b.txt")]
    source = open_source([str(path) for path in paths])
    paths[0].unlink()
    failed, good = source
    assert isinstance(failed, FailedDocument)
    assert failed.retryable
    assert "is gone since it was looked at" in failed.reason
    assert good == Document(None, "x", 1, str(paths[1]))


def test_several_files_and_patterns_are_read_one_after_the_other_and_say_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "b.jsonl", '{"id": "x", "text": "2"}\n')
    write(tmp_path / "a.jsonl", '{"id": "x", "text": "1"}\n')
    write(tmp_path / "c.txt", "3\n4\n")
    write(tmp_path / "notes" / "c.md", "5")
    write(tmp_path / "odd[1].txt", "6\n")
    source = open_source(["*.jsonl", "c.txt", "notes", "odd[1].txt", "notes/c.md"])
    assert source.has_several_files
    assert source.count() == 7
    assert [(document.id, document.file, document.row) for document in source] == [
        ("x", "a.jsonl", 1),
        ("x", "b.jsonl", 1),
        (None, "c.txt", 1),
        (None, "c.txt", 2),
        ("notes/c.md", "notes", 1),
        (None, "odd[1].txt", 1),
        ("notes/c.md", "notes/c.md", None),
    ]
    with pytest.raises(InvalidRequestError, match="no file matches the pattern"):
        open_source("*.csv")
    with pytest.raises(InvalidRequestError, match="name - once"):
        open_source(["-", "-"], stdin=io.BytesIO())


def test_an_option_without_effect_is_refused(tmp_path: Path) -> None:
    lines, table = write(tmp_path / "d.txt", "x\n"), write(tmp_path / "d.csv", "id,text\n")
    objects = write(tmp_path / "d.jsonl", "")
    write(tmp_path / "folder" / "a.txt", "x")
    for path, option in (
        (lines, ReadingOptions(id_field="id")),
        (lines, ReadingOptions(text_field="text")),
        (lines, ReadingOptions(columns=("x",))),
        (objects, ReadingOptions(delimiter=";")),
        (table, ReadingOptions(follow_links=True)),
        (tmp_path / "folder", ReadingOptions("jsonl")),
        (tmp_path / "folder", ReadingOptions(id_field="id")),
    ):
        with pytest.raises(InvalidRequestError, match="has no effect on this input, which is"):
            open_source(str(path), option)
    assert open_source([str(lines), str(table)], ReadingOptions(delimiter=",")).count() == 1
    for delimiter in ("", "ab", '"', "\n"):
        with pytest.raises(InvalidRequestError, match="--delimiter must be one character"):
            open_source(str(table), ReadingOptions(delimiter=delimiter))


MEASURED = """
import resource, sys
from impetus_producer.reading.duplicates import Ids
from impetus_producer.reading.source import open_source
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = open_source(sys.argv[1])
documents = Ids("keep").checked(lambda: source) if sys.argv[2] == "ids" else source
print(sum(1 for _ in documents), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ("header", "line", "count", "ids", "documents"),
    [
        ("text\n", "some text\n", 1_000_000, "no ids", 1_000_000),
        ("id,text\n", "doc-{},text\n", 200_000, "ids", 200_000),
        ('id,text\na,"never closed\n', "doc-{},some text that is part of the open quote\n", 1_000_000, "no ids", 1),
    ],
)
def test_a_million_lines_are_read_in_little_memory(
    tmp_path: Path, header: str, line: str, count: int, ids: str, documents: int
) -> None:
    path = tmp_path / "d.csv"
    with path.open("w") as file:
        file.write(header)
        file.writelines(map(line.format, range(count)))
    answer = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path), ids], capture_output=True, text=True, check=True
    )
    read_documents, grown_kib = map(int, answer.stdout.split())
    assert read_documents == documents
    assert grown_kib < 100_000
