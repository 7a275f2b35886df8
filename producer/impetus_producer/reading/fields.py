"""Which fields of a record are its id, its text and what goes with it, and the document made of them.

Knows records as values. Knows no file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..documents import Document, FailedDocument

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..documents import DocumentId, Read

MISSING: Any = object()
"""The value of a field that a record does not have."""


@dataclass(frozen=True, slots=True)
class Fields:
    """`id_required`: the id's field was asked for by name, so that a record without it fails. `numbered`: no document
    has an id of its own, so that its row's number can stand in for it and be nobody else's."""

    id: str = "id"
    text: str = "text"
    id_required: bool = False
    columns: tuple[str, ...] = ()
    file: str | None = None
    numbered: bool = False

    @property
    def needed(self) -> tuple[str, ...]:
        """The fields that an input with named columns must have."""
        return (self.text, *([self.id] if self.id_required else []), *self.columns)

    def of_nameless(self) -> Fields:
        """For an input in which nothing has an id. With several inputs a row's number would name several documents."""
        return replace(self, numbered=self.file is None)

    def of_record(self, record: Mapping[str, Any], row: int, place: str = "line") -> Read:
        columns = [value_at(record, name) for name in self.columns]
        return self.document(value_at(record, self.id), value_at(record, self.text), columns, row, place)

    def document(self, name: Any, text: Any, columns: Sequence[Any], row: int, place: str = "line") -> Read:
        """The document with these values, each `MISSING` where there is none, or why there is no such document."""
        document_id: DocumentId = str(row) if self.numbered else None
        try:
            document_id = self._checked_id(name) if not self.numbered else document_id
            if text is MISSING:
                raise ValueError(f"there is no field {self.text!r}")
            if not isinstance(text, str):
                raise ValueError(f"the field {self.text!r} is no string")
            for column, value in zip(self.columns, columns, strict=True):
                if not is_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)):
                    raise ValueError(f"the field {column!r} is not valid Unicode")
        except ValueError as error:
            return self.failed(str(error), row, document_id, place)
        return Document(document_id, text, row, self.file, tuple(None if v is MISSING else v for v in columns))

    def failed(
        self, reason: str, row: int, document_id: DocumentId = None, place: str = "line", retryable: bool = False
    ) -> FailedDocument:
        return FailedDocument(document_id, f"{place} {row}: {reason}", row, self.file, retryable)

    def _checked_id(self, value: Any) -> DocumentId:
        if value is MISSING or value is None or value == "":
            if self.id_required:
                raise ValueError(f"there is no id in {self.id!r}")
            return None
        if isinstance(value, float):
            raise ValueError(f"the id in {self.id!r} is {value!r}: an id is a string or a whole number")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"the id in {self.id!r} is neither a string nor a whole number")
        if isinstance(value, str) and not is_text(value):
            raise ValueError(f"the id in {self.id!r} is not valid Unicode")
        return value


def value_at(record: Mapping[str, Any], name: str) -> Any:
    """The field of that very name, else the one that a path of names leads to: `doc.body`."""
    if name in record:
        return record[name]
    value: Any = record
    for step in name.split("."):
        if not isinstance(value, dict) or step not in value:
            return MISSING
        value = value[step]
    return value


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: half a surrogate pair cannot."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
