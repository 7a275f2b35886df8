"""Folders: which of their files are documents, and what is said of the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from impetus_producer.documents import Document, FailedDocument
from impetus_producer.errors import InvalidRequestError
from impetus_producer.reading.source import ReadingOptions, open_source

from .files import read, told, write

if TYPE_CHECKING:
    from pathlib import Path


def test_a_folder_gives_its_text_files_in_order_by_their_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b/c.RST", "a.txt", "d.txt/e.md"):
        write(tmp_path / name, f"text of {name}")
    write(tmp_path / "a/bad.txt", b"\xff\xfd")
    write(tmp_path / "big.txt", b"x" * 10_000_001)
    write(tmp_path / "marked.txt", "\ufeffgrüße".encode("utf-16-le"))
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    documents = read(tmp_path)
    assert [(document.id, document.row) for document in documents] == [
        ("a.txt", 1),
        ("b.txt", 2),
        ("big.txt", 3),
        ("gone.txt", 4),
        ("marked.txt", 5),
        ("a/bad.txt", 6),
        ("a/z.md", 7),
        ("a/b/c.RST", 8),
        ("d.txt/e.md", 9),
    ]
    assert documents[0] == Document("a.txt", "text of a.txt", 1)
    assert told(documents)[4] == ("marked.txt", "grüße")
    assert [type(documents[at]) for at in (2, 3, 5)] == [FailedDocument] * 3
    assert open_source(str(tmp_path)).count() == 9


def test_what_is_left_out_is_counted_by_kind(tmp_path: Path) -> None:
    for name in ("a.txt", "1.png", "2.PNG", "Makefile", ".hidden.txt", ".git/x.txt", "sub/3.png"):
        write(tmp_path / "folder" / name, "x")
    write(tmp_path / "outside" / "o.txt", "secret")
    write(tmp_path / "folder" / "out.parquet.impetus" / "notes.txt", "of a run")
    (tmp_path / "folder" / "link.txt").symlink_to(tmp_path / "outside" / "o.txt")
    (tmp_path / "folder" / "within.txt").symlink_to(tmp_path / "folder" / "a.txt")
    (tmp_path / "folder" / "linked").symlink_to(tmp_path / "outside")
    (tmp_path / "folder" / "sub" / "up").symlink_to(tmp_path / "folder")
    source = open_source(str(tmp_path / "folder"))
    for _ in range(2):
        assert [document.id for document in source] == ["a.txt", "within.txt"]
        assert source.left_out() == (
            "Left out of the folders: 3 .png, 2 hidden, 2 linked folders, 1 folders of runs, "
            "1 links out of the folder, 1 without an ending."
        )
    followed = open_source(str(tmp_path / "folder"), ReadingOptions(follow_links=True))
    assert [document.id for document in followed] == ["a.txt", "link.txt", "within.txt", "linked/o.txt"]


def test_a_folder_without_text_files_says_what_it_looked_for_and_what_it_found(tmp_path: Path) -> None:
    write(tmp_path / "a.png", "x")
    with pytest.raises(InvalidRequestError, match=r"no text files .* \.md.*; left out 1 \.png"):
        open_source(str(tmp_path))


def test_a_folder_that_cannot_be_read_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    write(tmp_path / "a.txt", "x")
    write(tmp_path / "closed" / "b.txt", "x")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    # The tests may run as root, whom no mode keeps out.
    monkeypatch.setattr(os, "scandir", refusing)
    good, failed = read(tmp_path)
    assert good.id == "a.txt"
    assert failed == FailedDocument("closed", "the folder cannot be read: Permission denied", 2, retryable=True)


def test_a_lone_document_is_read_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "note.MD", "# Title\n\nand text\n")
    assert read(path) == [Document(str(path), "# Title\n\nand text\n")]
    latin = write(tmp_path / "latin.rst", b"gr\xfc\xdfe")
    assert "--encoding, such as latin-1" in told(read(latin))[0][1]
    assert told(read(latin, encoding="latin-1")) == [(str(latin), "grüße")]
    assert [name for name, _ in told(read(path, input_format="txt"))] == ["1", "2", "3"]
