"""The note by which a supervisor learns what its worker had begun."""

from __future__ import annotations

import os

import pytest

from impetus_worker.host.begun import BegunNote


def test_a_note_is_read_as_it_was_written_last_and_a_torn_one_is_empty() -> None:
    note = BegunNote.create()
    try:
        assert note.read() == ()
        many = tuple(f"job-{number}" for number in range(3_000))
        worker = BegunNote.open(os.dup(note.fd))
        for ids in (many, ("a\0b\n", "ü", "\udcff"), (), ("x",)):
            worker.write(ids)
            assert note.read() == ids
        worker.write(many)
        os.pwrite(note.fd, b"job", 5_000)
        assert note.read() == ()
        os.ftruncate(note.fd, 100)
        assert note.read() == ()
        os.ftruncate(note.fd, 5)
        assert note.read() == ()
        worker.close()
    finally:
        note.close()


def test_a_note_that_says_the_same_costs_no_system_call(monkeypatch: pytest.MonkeyPatch) -> None:
    note = BegunNote.create()
    note.write(["a"])
    monkeypatch.setattr(os, "pwrite", lambda *rest: pytest.fail("written again"))
    note.write(["a"])
    monkeypatch.undo()
    note.close()


def test_where_the_disk_is_full_the_old_note_blames_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*rest: object) -> int:
        raise OSError(28, "No space left on device")

    note = BegunNote.create()
    note.write(["old"])
    monkeypatch.setattr(os, "pwrite", full)
    note.write(["new"])
    monkeypatch.undo()
    assert note.read() == ()
    note.write(["new"])
    assert note.read() == ("new",)
    note.close()


def test_while_a_callback_runs_its_job_alone_is_named_whatever_begins_meanwhile() -> None:
    note = BegunNote.create()
    note.write(["a", "b"])
    with note.calling("called"):
        assert note.read() == ("called",)
        note.write(["c"])
        with note.calling("of another server"):
            assert note.read() == ("called", "of another server")
        assert note.read() == ("called",)
    assert note.read() == ("c",)
    note.close()
