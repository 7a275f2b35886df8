"""Files by URL and rows of queries, read as files are."""

from __future__ import annotations

import gzip
import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry as registered
from pyarrow import parquet

from impetus_producer.documents import Document, FailedDocument
from impetus_producer.errors import InvalidRequestError
from impetus_producer.reading.source import ReadingOptions, open_source

from .files import read, told

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Hub(MemoryFileSystem):  # type: ignore[misc]
    """Stands for Hugging Face: paths below `datasets`, errors of its own, and no other machine."""

    protocol = "hf"
    store: dict[str, Any] = {}  # noqa: RUF012 - as the base has it
    pseudo_dirs = [""]  # noqa: RUF012
    breaks_at: int | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("hf://").strip("/")

    def unstrip_protocol(self, name: str) -> str:
        return f"hf://{name.strip('/')}"

    def _open(self, path: str, *args: Any, **options: Any) -> Any:
        file = super()._open(path, *args, **options)
        if self.breaks_at is not None:
            read = file.read

            def breaking(count: int = -1) -> bytes:
                if file.tell() >= (self.breaks_at or 0):
                    raise HubError("502 Bad Gateway")
                return bytes(read(count))

            file.read = breaking
        return file


class HubError(Exception):
    """No `OSError`, as those of some file systems are none."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setitem(registered, "hf", Hub)
    Hub.clear_instance_cache()
    hub = Hub()
    yield hub
    hub.store.clear()
    hub.pseudo_dirs[:] = [""]
    Hub.breaks_at = None


def put(system: Any, path: str, data: bytes) -> None:
    with system.open(path, "wb") as file:
        file.write(data)


def lines(*texts: str) -> bytes:
    return b"".join(json.dumps({"id": text, "text": text.upper()}).encode() + b"\n" for text in texts)


def test_files_by_url_are_read_as_files_are(hub: Hub, tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"id": ["p", "q"], "text": ["P", "Q"]}), table)
    put(hub, "datasets/me/docs/data/0.jsonl", lines("a", "b"))
    put(hub, "datasets/me/docs/data/1.jsonl.gz", gzip.compress(lines("c")))
    put(hub, "datasets/me/docs/t.parquet", table.read_bytes())
    assert told(read("hf://datasets/me/docs/data/0.jsonl")) == [("a", "A"), ("b", "B")]
    assert told(read("hf://datasets/me/docs/t.parquet")) == [("p", "P"), ("q", "Q")]
    assert told(read(f"file://{table}")) == [("p", "P"), ("q", "Q")]
    source = open_source("hf://datasets/me/docs/data/*")
    for _ in range(2):
        documents = list(source)
        assert told(documents) == [("a", "A"), ("b", "B"), ("c", "C")]
    assert documents[2].file == "hf://datasets/me/docs/data/1.jsonl.gz"
    assert open_source("hf://datasets/me/docs/t.parquet").count() == 2


def test_what_cannot_be_read_by_url_is_told_in_a_sentence(hub: Hub) -> None:
    put(hub, "datasets/me/a.jsonl", lines("a"))
    put(hub, "datasets/me/a.pdf", b"x")
    for url, said in (
        ("hf://datasets/me/b.jsonl", "cannot be read"),
        ("hf://datasets/me", "is a folder: name its files"),
        ("hf://datasets/me/*.csv", "no file matches the pattern"),
        ("hf://datasets/me/a.pdf", "has to be on this machine"),
        ("gopher://somewhere/a.jsonl", "(?i)protocol"),
        ("s3://bucket/a.jsonl", "cannot be read|not installed"),
    ):
        with pytest.raises(InvalidRequestError, match=said):
            read(url)


def test_a_place_that_breaks_off_fails_what_is_left_and_says_to_try_again(hub: Hub) -> None:
    put(hub, "datasets/me/a.jsonl", lines(*(f"{number:07}" for number in range(100_000))))
    source = open_source("hf://datasets/me/a.jsonl")
    Hub.breaks_at = 2_000_000
    *good, last = source
    assert len(good) > 10_000
    assert all(isinstance(document, Document) for document in good)
    assert isinstance(last, FailedDocument)
    assert last.retryable
    assert "502 Bad Gateway; nothing from here on was read" in last.reason


@pytest.fixture
def shop(tmp_path: Path) -> str:
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, body TEXT, lang TEXT)")
        rows = [(number, f"text {number}", "de") for number in range(2500)]
        database.executemany("INSERT INTO posts VALUES (?, ?, ?)", rows)
        database.execute("UPDATE posts SET body = NULL WHERE id = 7")
    return f"sqlite:///{path}"


def query(url: str, question: str, **options: Any) -> list[Any]:
    return list(open_source([], ReadingOptions(sql=(url, question), **options)))


def test_the_rows_of_a_query_are_documents(shop: str) -> None:
    documents = query(shop, "SELECT id, body AS text, lang FROM posts ORDER BY id DESC", columns=("lang",))
    assert len(documents) == 2500
    assert documents[0] == Document(2499, "text 2499", 1, None, ("de",))
    assert "is no string" in documents[2492].reason
    nameless = query(shop, "SELECT body AS text FROM posts WHERE id < 2 AND body LIKE 'text%' ORDER BY id")
    assert told(nameless) == [("1", "text 0"), ("2", "text 1")]
    source = open_source([], ReadingOptions(sql=(shop, "SELECT id, body AS text FROM posts LIMIT 2")))
    assert [told(list(source)) for _ in range(2)] == [[(0, "text 0"), (1, "text 1")]] * 2


def test_a_query_that_cannot_be_read_is_told_in_a_sentence_and_changes_nothing(shop: str) -> None:
    for url, question, said in (
        (shop, "SELECT missing FROM posts", "no such column: missing"),
        (shop, "SELECT id FROM posts", "has no column 'text'; it has 'id'"),
        (shop, "SELECT id, id, body AS text FROM posts", "2 columns named 'id'"),
        (shop, "DELETE FROM posts", "answers with no rows"),
        ("sqlite:///nowhere.db", "SELECT 1", "there is no such file"),
        ("nothing://x", "SELECT 1", "(?i)load plugin"),
        ("no url", "SELECT 1", "(?i)parse"),
    ):
        with pytest.raises(InvalidRequestError, match=said):
            query(url, question)
    assert len(query(shop, "SELECT id, body AS text FROM posts WHERE id <> 7")) == 2499
    with pytest.raises(InvalidRequestError, match="leave INPUT out"):
        open_source("a.txt", ReadingOptions(sql=(shop, "SELECT 1")))
