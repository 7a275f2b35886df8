"""The files that answers are appended to: what counts in them, and what a dead writer leaves."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impetus_producer.batches.journal import Entry, Journal, LockedError
from impetus_producer.bodies.refusals import Refusal
from impetus_producer.errors import ImpetusError, InvalidRequestError

from .requests import counted, read

if TYPE_CHECKING:
    from pathlib import Path


def journal(folder: Path, *, anew: bool = False) -> Journal:
    return Journal(folder / "out.jsonl", folder / "errors.jsonl", folder / "lock", anew=anew)


def entries(*custom_ids: str) -> list[Entry]:
    return [Entry.answer(custom_id, "0a", b'{"x":1}') for custom_id in custom_ids]


def test_each_kind_of_entry_is_a_line_of_openais_format(tmp_path: Path) -> None:
    with journal(tmp_path) as opened:
        opened.append([
            *entries('a "quoted" ü'),
            Entry.refusal("b", "0b", Refusal(400, "input: is bad", "input", "invalid_request")),
            Entry.never_asked("c", "0c", "batch_expired", "too late"),
        ])  # fmt: skip
        assert (opened.completed, opened.failed) == (1, 2)
    assert read(tmp_path / "out.jsonl") == [
        {
            "id": "batch_req_0a",
            "custom_id": 'a "quoted" ü',
            "response": {"status_code": 200, "request_id": "0a", "body": {"x": 1}},
            "error": None,
        }
    ]
    refused, late = read(tmp_path / "errors.jsonl")
    assert refused["response"]["status_code"] == 400
    assert refused["response"]["body"]["error"]["param"] == "input"
    assert (late["response"], late["error"]) == (None, {"code": "batch_expired", "message": "too late"})


@given(cut=st.integers(1, 200), custom_id=st.text(min_size=1, max_size=8))
def test_a_line_that_was_not_finished_never_was(
    tmp_path_factory: pytest.TempPathFactory, cut: int, custom_id: str
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    with journal(folder) as opened:
        opened.append(entries("first"))
        opened.append(entries(f"2{custom_id}"))
    output = folder / "out.jsonl"
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    output.write_bytes(whole[: max(len(lines[0]), len(whole) - cut)])
    with journal(folder) as opened:
        assert opened.done == {"first"}
        opened.append(entries(f"2{custom_id}"))
    assert output.read_bytes() == whole
    with journal(folder) as opened:
        assert opened.done == {"first", f"2{custom_id}"}
        assert opened.last_job_ids == ["0a", "0a"]


def test_a_disk_that_takes_no_more_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, journal(tmp_path) as opened:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ImpetusError, match="cannot be written: No space left"):
            opened.append(entries("a"))
        assert opened.done == set()
    with pytest.raises(ImpetusError, match="cannot be written: No such file or directory"):
        journal(tmp_path / "nowhere")


def test_one_process_writes_and_another_is_told(tmp_path: Path) -> None:
    with journal(tmp_path), pytest.raises(LockedError, match="another process"):
        journal(tmp_path)
    journal(tmp_path).close()


def test_a_file_that_no_batch_wrote_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text('{"mine": 1}\n')
    with pytest.raises(InvalidRequestError, match="no batch wrote it"):
        journal(tmp_path)
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"mine": 1}
    with journal(tmp_path, anew=True) as opened:
        opened.append(entries("a"))
    assert counted(tmp_path / "out.jsonl") == {"a": 1}
