"""Text out of Markdown, HTML and PDF; what is broken, locked or hostile fails alone."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from impetus_producer.documents import Document, FailedDocument
from impetus_producer.errors import InvalidRequestError, MissingExtraError
from impetus_producer.reading.extracting import extractor
from impetus_producer.reading.extracting.extractor import ExtractionError, Extractor
from impetus_producer.reading.source import ReadingOptions, open_source

from .files import read, told, write
from .pdfs import bomb, encrypted, pdf

if TYPE_CHECKING:
    from pathlib import Path

PAGE = """<!doctype html><html><head><title>Rivers</title><style>p {color: red}</style></head><body>
<h1>The Rhine</h1><p>It is <b>long</b>.</p><script>alert("x")</script><ul><li>Basel<li>Köln</ul></body></html>"""


def test_a_folder_gives_what_its_pages_and_pdfs_show(tmp_path: Path) -> None:
    write(tmp_path / "a.html", PAGE)
    write(tmp_path / "b.htm", '<meta charset="iso-8859-1"><p>Gr\xfc\xdfe'.encode("latin-1"))
    write(tmp_path / "c.md", "# Title\n\nSome *text*.\n")
    write(tmp_path / "d.pdf", pdf("one", "", "three"))
    assert told(read(tmp_path)) == [
        ("a.html", "Rivers\n\nThe Rhine\n\nIt is long.\n\nBasel\nKöln"),
        ("b.htm", "Grüße"),
        ("c.md", "# Title\n\nSome *text*.\n"),
        ("d.pdf", "one\n\n\n\nthree"),
    ]
    in_pages = read(tmp_path, pages=True, plain_markdown=True)
    assert [(each.id, each.row) for each in in_pages[2:]] == [("c.md", 3), ("d.pdf#page=1", 4), ("d.pdf#page=3", 5)]
    assert told(in_pages)[2] == ("c.md", "Title\n\nSome text.")


def test_hostile_documents_fail_alone_and_say_why(tmp_path: Path) -> None:
    names: dict[str, bytes | str] = {
        "a-bomb.pdf": bomb(),
        "b-broken.pdf": pdf("one")[:200],
        "c-none.pdf": b"no pdf at all",
        "d-empty.pdf": b"",
        "e-locked.pdf": encrypted("secret", "hidden"),
        "f-unlocked.pdf": encrypted("", "for all to read"),
        "g-pictures.pdf": pdf("", ""),
        "h-deep.html": "<div>" * 100_000 + "deep",
        "i-empty.html": "",
        "j-good.pdf": pdf("good"),
    }
    for name, content in names.items():
        write(tmp_path / name, content)
    documents = read(tmp_path)
    assert [document.id for document in documents] == list(names)
    reasons = {document.id: document.reason for document in documents if isinstance(document, FailedDocument)}
    assert set(names) - set(reasons) == {"f-unlocked.pdf", "j-good.pdf"}
    assert "password" in reasons["e-locked.pdf"]
    assert "pictures of text" in reasons["g-pictures.pdf"]
    assert "it is broken" in reasons["c-none.pdf"]
    assert reasons["h-deep.html"] == reasons["i-empty.html"] == "there is no text in it"
    assert not any(document.retryable for document in documents if isinstance(document, FailedDocument))


def test_what_takes_too_long_or_kills_its_reader_is_refused_and_the_next_is_read(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "never")
    good = write(tmp_path / "good.html", "<p>fine")
    asked = Extractor(text_s=1)
    with pytest.raises(ExtractionError, match="takes longer than"):
        list(asked.texts(tmp_path / "never", "html", None))
    assert list(asked.texts(good, "html", None)) == ["fine"]

    def kill_while_it_reads() -> None:
        with open(tmp_path / "never", "wb"):  # until somebody reads
            assert asked._process is not None
            asked._process.kill()

    killer = threading.Thread(target=kill_while_it_reads)
    killer.start()
    with pytest.raises(ExtractionError, match="crashed"):
        list(asked.texts(tmp_path / "never", "html", None))
    killer.join()
    assert list(asked.texts(good, "html", None)) == ["fine"]
    asked.close()


def test_a_reader_that_died_between_two_files_is_held_against_neither(tmp_path: Path) -> None:
    good = write(tmp_path / "good.html", "<p>fine")
    asked = Extractor()
    try:
        for wait in (True, False):
            assert list(asked.texts(good, "html", None)) == ["fine"]
            assert asked._process is not None
            asked._process.kill()
            if wait:
                asked._process.wait()
            else:  # gone, and nobody has noticed: the pipe alone tells
                os.waitid(os.P_PID, asked._process.pid, os.WEXITED | os.WNOWAIT)
                asked._process.poll = lambda: None  # type: ignore[method-assign]
        assert list(asked.texts(good, "html", None)) == ["fine"]
    finally:
        asked.close()


def test_a_lone_file_and_pages_of_several(tmp_path: Path) -> None:
    files = [str(write(tmp_path / f"{name}.pdf", pdf(name, name))) for name in "ab"]
    assert read(tmp_path / "a.pdf") == [Document(files[0], "a\n\na")]
    documents = list(open_source(files, ReadingOptions(pages=True)))
    assert [each.id for each in documents] == [f"{file}#page={page}" for file in files for page in (1, 2)]


def test_whoever_stops_in_the_middle_of_a_file_does_not_hear_it_later(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "a.pdf", pdf("one", "two"))), ReadingOptions(pages=True))
    for document in source:
        assert isinstance(document, Document)
        break
    assert [document.text for document in source if isinstance(document, Document)] == ["one", "two"]


def test_options_without_effect_and_extras_that_are_missing_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = write(tmp_path / "a.txt", "x\n")
    for options in (ReadingOptions(pages=True), ReadingOptions(plain_markdown=True)):
        with pytest.raises(InvalidRequestError, match="has no effect on this input"):
            open_source(str(lines), options)
    page = write(tmp_path / "a.pdf", pdf("x"))
    monkeypatch.setattr(extractor, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"Reading .pdf needs the 'documents' extra"):
        read(page)
    source = open_source(str(tmp_path))
    assert [document.id for document in source] == ["a.txt"]
    assert source.left_out() == "Left out of the folders: 1 .pdf (which the 'documents' extra reads)."
