"""Texts made of a record's fields: `Summarise {title}: {doc.body}`."""

from __future__ import annotations

import json
from dataclasses import replace
from string import Formatter
from typing import TYPE_CHECKING, Any

from ..documents import Document, FailedDocument
from ..errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ..documents import Read


class Template:
    """Fields stand in braces, `{{` and `}}` are braces. Raises `InvalidRequestError` for one that is none, or has no
    field."""

    def __init__(self, text: str) -> None:
        try:
            parts = list(Formatter().parse(text))
        except ValueError as error:
            raise InvalidRequestError(f"--template {text!r}: {error}; a brace itself is written twice") from None
        for _, name, form, conversion in parts:
            if name == "" or form or conversion:
                raise InvalidRequestError(
                    f"--template {text!r}: write the names of fields alone in braces, and a brace itself twice"
                )
        self._parts = [(literal, name) for literal, name, _, _ in parts]
        self.fields = tuple(dict.fromkeys(name for _, name in self._parts if name is not None))
        if not self.fields:
            raise InvalidRequestError(f"--template {text!r} names no field: write one in braces, such as {{text}}")

    def filled(self, values: dict[str, Any]) -> str:
        """Strings as they are, other values as JSON. Raises `ValueError` naming the field that has no value."""
        text = []
        for literal, name in self._parts:
            text.append(literal)
            if name is not None:
                if (value := values[name]) is None:
                    raise ValueError(f"there is nothing in the field {name!r}")
                text.append(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
        return "".join(text)


def filled(
    documents: Iterable[Read], template: Template, text_field: str, columns: Sequence[str], kept: int
) -> Iterator[Read]:
    """Each document with the template's text for its own. `columns`: the names of `Document.columns`, of which the
    first `kept` stay."""
    for document in documents:
        if not isinstance(document, Document):
            yield document
            continue
        values = {text_field: document.text, **dict(zip(columns, document.columns, strict=False))}
        try:
            text = template.filled(values)
        except ValueError as error:
            yield _failed(document, str(error))
        else:
            yield replace(document, text=text, columns=document.columns[:kept])


def _failed(document: Document, reason: str) -> Read:
    return FailedDocument(document.id, f"row {document.row}: {reason}", document.row, document.file)
