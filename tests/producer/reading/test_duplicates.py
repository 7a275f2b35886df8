"""Ids that occur more than once."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from impetus_producer.documents import Document, FailedDocument
from impetus_producer.errors import ImpetusError
from impetus_producer.reading.duplicates import Ids

if TYPE_CHECKING:
    from impetus_producer.documents import Read

DOCUMENTS: list[Read] = [
    Document("a", "1", 1),
    Document(0, "2", 2),
    Document(None, "3", 3),
    Document("0", "4", 4),
    FailedDocument("a", "bad", 5),
    Document("a", "6", 6),
    Document(None, "7", 7),
    Document("a", "8", 8),
]


def rows(ids: Ids) -> list[int | None]:
    return [document.row for document in ids.checked(lambda: DOCUMENTS) if isinstance(document, Document)]


def test_they_are_kept_counted_and_named() -> None:
    ids = Ids("keep")
    assert list(ids.checked(lambda: DOCUMENTS)) == DOCUMENTS
    assert ids.sentence() == (
        "1 id occurs more than once: 'a' 3 times; all were kept; --on-duplicate fail or last does otherwise."
    )
    ids.close()


def test_all_but_the_first_fail_if_wished() -> None:
    ids = Ids("fail")
    documents = list(ids.checked(lambda: DOCUMENTS))
    assert [type(document) for document in documents].count(FailedDocument) == 3
    assert documents[5] == FailedDocument("a", "row 6: the id 'a' is already that of row 1", 6)
    ids.close()


def test_only_the_last_is_taken_if_wished() -> None:
    ids = Ids("last")
    assert rows(ids) == [2, 3, 4, 7, 8]
    assert str(ids.sentence()).endswith("'a' 3 times; all but the last were left out.")
    ids.close()


def test_where_ids_are_written_as_strings_a_number_and_its_digits_are_one_id() -> None:
    ids = Ids("fail", as_text=True)
    assert rows(ids) == [1, 2, 3, 7]
    assert str(ids.sentence()).startswith("2 ids occur more than once: '0' 2 times, 'a' 3 times; ")
    ids.close()


def test_many_repeated_ids_are_counted_and_some_named() -> None:
    ids = Ids("keep")
    documents = [Document(str(number % 50), "x", number) for number in range(100)]
    assert len(list(ids.checked(lambda: documents))) == 100
    sentence = str(ids.sentence())
    assert sentence.startswith("50 ids occur more than once: '0' 2 times, '1' 2 times, '2' 2 times, ")
    assert "and 45 more" in sentence
    ids.close()


def test_a_disk_without_room_for_them_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = Ids("keep")

    class Full:
        def execute(self, *_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

    ids.close()
    monkeypatch.setattr(ids, "_database", Full())
    with pytest.raises(ImpetusError, match=r"could not be kept in .*: database or disk is full; make room there"):
        list(ids.checked(lambda: DOCUMENTS))
