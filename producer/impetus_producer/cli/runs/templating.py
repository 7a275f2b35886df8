"""What `--template` does to a run: its fields are read too, and each document's text is made of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ...errors import InvalidRequestError
from ...reading.templates import Template, filled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ...documents import Read
    from ...reading.options import ReadingOptions
    from ..settings.server import Session


def template_option(what: str, example: str) -> Callable[[Any], Any]:
    return click.option(
        "--template",
        metavar="TEXT",
        help=f"{what}, with fields in braces, such as {example}. A brace itself is written twice. "
        "[default: the text alone]",
    )


class Templated:
    """Makes documents of what is read by the options `asked`. Raises `InvalidRequestError` for what is no template."""

    def __init__(self, template: str | None, reading: ReadingOptions) -> None:
        if template is not None and reading.text_field is not None:
            raise InvalidRequestError("--template says which fields make the text: leave --text-field out")
        self._template = None if template is None else Template(template)
        self._kept = len(reading.columns)
        self.asked = reading if self._template is None else _with_fields_of(self._template, reading)

    def __call__(self, documents: Iterable[Read], session: Session) -> Iterable[Read]:
        if self._template is None:
            return documents
        return filled(documents, self._template, self.asked.text_field or "text", self.asked.columns, self._kept)


def _with_fields_of(template: Template, reading: ReadingOptions) -> ReadingOptions:
    """Reads the template's fields too. Where it does not name the text's, its first one stands for that."""
    text = reading.text_field or "text"
    if text not in template.fields:
        text = template.fields[0]
    more = [name for name in template.fields if name not in (text, *reading.columns)]
    return replace(reading, text_field=None if text == "text" else text, columns=(*reading.columns, *more))
