"""Files and batches in a folder."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from openai.types import Batch as OpenAIBatch
from openai.types import FileObject as OpenAIFile

from impetus_producer.batches import store as stores
from impetus_producer.batches.objects import Batch, window_s
from impetus_producer.batches.store import BatchStore, NotKeptError
from impetus_producer.errors import InvalidRequestError

from .requests import EMBEDDINGS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> BatchStore:
    return BatchStore(tmp_path / "files")


def test_a_file_is_kept_whole_and_seen_by_its_owner(store: BatchStore, tmp_path: Path) -> None:
    kept = store.add_file([b"one\n", b"two\n"], "in.jsonl", owner="anna")
    assert OpenAIFile.model_validate(kept.shown()).bytes == 8
    assert "owner" not in kept.shown()
    again = BatchStore(tmp_path / "files")
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
