"""Files and batches in a folder."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

import fsspec
import pytest
from openai.types import Batch as OpenAIBatch
from openai.types import FileObject as OpenAIFile

from impetus_producer.batches import store as stores
from impetus_producer.batches.objects import Batch, window_s
from impetus_producer.batches.store import BatchStore, NotKeptError
from impetus_producer.errors import ImpetusError, InvalidRequestError, MissingExtraError

from .requests import EMBEDDINGS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> BatchStore:
    return BatchStore(tmp_path / "files")


@pytest.fixture(params=[None, "file", "memory"])
def contents_url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return None if request.param is None else f"{request.param}://{tmp_path}/contents"


def test_a_file_is_kept_whole_and_seen_by_its_owner(tmp_path: Path, contents_url: str | None) -> None:
    store = BatchStore(tmp_path / "files", contents_url)
    kept = store.add_file([b"one\n", b"two\n"], "in.jsonl", owner="anna")
    assert OpenAIFile.model_validate(kept.shown()).bytes == 8
    assert "owner" not in kept.shown()
    again = BatchStore(tmp_path / "files", contents_url)
    for owner in ("anna", None):
        assert again.file(kept.id, owner) == kept
    with again.open_file(kept.id, "anna") as file:
        assert file.read() == b"one\ntwo\n"
    for strange in (("bob", kept.id), (None, "file-" + "0" * 32), (None, "../../etc/passwd"), (None, "file-x/../y")):
        with pytest.raises(NotKeptError, match="there is no file"):
            store.file(strange[1], strange[0])
    store.delete_file(kept.id, "anna")
    with pytest.raises(NotKeptError):
        store.open_file(kept.id)
    assert list((tmp_path / "files" / "files").iterdir()) == []
    if contents_url is not None:
        assert fsspec.open(contents_url).fs.find(contents_url) == []


def test_answers_are_a_file_once_however_often_that_is_done(tmp_path: Path, contents_url: str | None) -> None:
    store = BatchStore(tmp_path / "files", contents_url)
    batch = store.add_batch(store.add_file([b"x"], "in.jsonl").id, EMBEDDINGS, output_expires_after_s=3600)
    journal = store.workplace(batch.id) / "output.jsonl"
    assert store.keep_answers(batch, journal, "output") is None
    journal.write_bytes(b"one\n")
    # A crash may come between any two of these: before the content is gone from here, and before it has an object.
    kept = [store.keep_answers(batch, journal, "output")]
    (tmp_path / "files" / "files" / f"{kept[0]}.json").unlink()
    kept.append(store.keep_answers(store.batch(batch.id), journal, "output"))
    journal.write_bytes(b"one\n")
    kept.append(store.keep_answers(batch, journal, "output"))
    assert len(set(kept)) == 1
    with store.open_file(str(kept[0])) as file:
        assert file.read() == b"one\n"
    expiry = store.file(str(kept[0])).expires_at
    assert expiry is not None
    assert 3590 < expiry - batch.created_at < 3700
    assert "output_expires_after_s" not in batch.shown()


def test_a_file_that_expires_is_gone_unless_a_batch_is_to_read_it(
    tmp_path: Path, contents_url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BatchStore(tmp_path / "files", contents_url)
    stays, goes, is_read = (store.add_file([b"x"], "in.jsonl", expires_after_s=after) for after in (None, 3600, 3600))
    batch = store.add_batch(is_read.id, EMBEDDINGS)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    store.delete_expired()
    assert [each.id for each in store.files()[0]] == [stays.id]
    for gone in (goes.id, is_read.id):
        with pytest.raises(NotKeptError):
            store.open_file(gone)
    with store.open_input(batch) as file:
        assert file.read() == b"x"
    store.change(batch.id, lambda now: now.now("completed"))
    store.delete_expired()
    with pytest.raises(NotKeptError):
        store.open_input(batch)
    assert [path.stem for path in (tmp_path / "files" / "files").glob("*.json")] == [stays.id]


class Broken(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A storage that is away, and says so by an error of its own."""

    protocol = "broken"

    class AwayError(Exception):
        pass

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass

    def put_file(self, *_: object, **__: object) -> None:
        raise self.AwayError("no route")

    get_file = put_file


def test_what_a_storage_says_is_one_sentence_and_nothing_is_left_of_what_it_did_not_take(tmp_path: Path) -> None:
    fsspec.register_implementation("broken", Broken, clobber=True)
    store = BatchStore(tmp_path / "files", "broken://there")
    with pytest.raises(ImpetusError, match="'broken://there' cannot be used: no route"):
        store.add_file([b"x"], "in.jsonl")
    assert list((tmp_path / "files" / "files").iterdir()) == []


@pytest.mark.parametrize("url", ["nothing://there", "s3://bucket/path"])
def test_a_url_that_is_none_here_is_refused(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InvalidRequestError, match="is no place for files: "):
        BatchStore(tmp_path / "files", url)


def test_fsspec_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"impetus-batch\[remote\]"):
        BatchStore(tmp_path / "files", "memory://x")


def test_a_file_that_is_too_large_leaves_nothing(
    store: BatchStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "MAX_BYTES", 5)
    with pytest.raises(InvalidRequestError, match="larger than 5 bytes"):
        store.add_file([b"abc", b"def"], "in.jsonl")
    assert list((tmp_path / "files" / "files").iterdir()) == []


def test_lists_go_on_where_a_cursor_stands(store: BatchStore) -> None:
    ids = [store.add_file([b"x"], f"{number}", purpose="batch", owner="anna").id for number in range(5)]
    other = store.add_file([b"x"], "other", purpose="user_data", owner="bob").id
    page, more = store.files(limit=2, owner="anna")
    assert ([each.id for each in page], more) == ([ids[4], ids[3]], True)
    page, more = store.files(limit=3, owner="anna", after=page[-1].id)
    assert ([each.id for each in page], more) == (ids[2::-1], False)
    page, more = store.files(oldest_first=True, after=ids[1], purpose="batch")
    assert ([each.id for each in page], more) == (ids[2:], False)
    assert [each.id for each in store.files(purpose="user_data")[0]] == [other]
    with pytest.raises(NotKeptError):
        store.files(after="file-" + "0" * 32)


def test_a_batch_is_openais_object_and_is_refused_what_cannot_be(store: BatchStore) -> None:
    file = store.add_file([b"x"], "in.jsonl", owner="anna")
    batch = store.add_batch(file.id, EMBEDDINGS, "2h", {"night": "first"}, owner="anna")
    shown = OpenAIBatch.model_validate(batch.shown())
    assert (shown.status, shown.metadata, shown.expires_at) == (
        "validating",
        {"night": "first"},
        batch.created_at + 7200,
    )
    assert store.batch(batch.id, "anna") == batch
    assert store.batches(owner="bob") == ([], False)
    assert store.batches(owner="anna") == ([batch], False)
    with pytest.raises(NotKeptError):
        store.add_batch(file.id, EMBEDDINGS, owner="bob")
    for wrong in (
        {"endpoint": "/v1/images"},
        {"endpoint": EMBEDDINGS, "completion_window": "soon"},
        {"endpoint": EMBEDDINGS, "completion_window": "31d"},
        {"endpoint": EMBEDDINGS, "metadata": {"a": "x" * 513}},
        {"endpoint": EMBEDDINGS, "metadata": {str(number): "" for number in range(17)}},
    ):
        with pytest.raises(InvalidRequestError) as error:
            store.add_batch(file.id, owner="anna", **wrong)
        assert error.value.field in wrong
    assert store.unfinished() == [batch.id]


@pytest.mark.parametrize(("written", "seconds"), [("30m", 1800), ("24h", 86400), ("30d", 30 * 86400)])
def test_a_window_is_minutes_hours_or_days(written: str, seconds: int) -> None:
    assert window_s(written) == seconds


def test_changes_of_many_at_once_are_all_made(store: BatchStore, tmp_path: Path) -> None:
    file = store.add_file([b"x"], "in.jsonl")
    batch = store.add_batch(file.id, EMBEDDINGS)

    def count(own: BatchStore) -> None:
        def more(now: Batch) -> Batch:
            counts = now.request_counts.model_copy(update={"total": now.request_counts.total + 1})
            return now.model_copy(update={"request_counts": counts})

        for _ in range(20):
            own.change(batch.id, more)

    threads = [threading.Thread(target=count, args=(BatchStore(tmp_path / "files"),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.batch(batch.id).request_counts.total == 80


def test_cancelling_is_for_what_is_not_over(store: BatchStore) -> None:
    file = store.add_file([b"x"], "in.jsonl")
    batch = store.add_batch(file.id, EMBEDDINGS)
    assert store.cancel_batch(batch.id).status == "cancelling"
    assert store.cancel_batch(batch.id).cancelling_at is not None
    store.change(batch.id, lambda now: now.now("completed"))
    assert store.cancel_batch(batch.id).status == "completed"
