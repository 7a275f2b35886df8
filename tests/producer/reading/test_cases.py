"""The files that were misread once, as files and on standard input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from impetus_producer.documents import Document, FailedDocument
from impetus_producer.errors import InvalidRequestError

from .files import CASES, read, told

if TYPE_CHECKING:
    from collections.abc import Callable

    from impetus_producer.documents import Read

    Reader = Callable[..., list[Read]]


def from_file(name: str, **options: Any) -> list[Read]:
    return read(CASES / name, **options)


def from_standard_input(name: str, **options: Any) -> list[Read]:
    return read("-", (CASES / name).read_bytes(), **options)


@pytest.fixture(params=[from_file, from_standard_input], ids=["file", "stdin"])
def reader(request: pytest.FixtureRequest) -> Reader:
    function: Reader = request.param
    return function


@pytest.mark.parametrize(
    ("name", "options", "documents"),
    [
        ("space-after-comma.csv", {}, [Document("a", "hello", 2)]),
        ("semicolons.csv", {"delimiter": ";"}, [Document("a", "hello", 2)]),
        ("tabs.tsv", {}, [Document("a", "hello", 2)]),
        ("utf16.csv", {}, [Document("a", "grüße", 2)]),
        ("latin1.csv", {"encoding": "latin-1"}, [Document("a", "grüße", 2), Document("b", "plain", 3)]),
        ("array.jsonl", {}, [Document(1, "one", 1), Document(2, "two", 1)]),
        ("pretty.json", {}, [Document(1, "one", 2)]),
        ("blank-first.jsonl", {}, [Document("a", "one", 2)]),
        ("nested.jsonl", {"text_field": "doc.body"}, [Document("a", "inside", 1)]),
    ],
)
def test_what_can_be_read_is(reader: Reader, name: str, options: dict[str, Any], documents: list[Read]) -> None:
    assert reader(name, **options) == documents


def test_an_unclosed_quote_fails_on_the_line_it_opens_and_swallows_nothing(reader: Reader) -> None:
    reason = "line 2: a quote opens here that is never closed; nothing from here on was read"
    assert reader("unclosed-quote.csv") == [FailedDocument("a", reason, 2)]


def test_a_row_of_another_width_fails_alone(reader: Reader) -> None:
    failed, good = reader("unquoted-comma.csv")
    assert good == Document("b", "world", 3)
    assert isinstance(failed, FailedDocument)
    assert (failed.id, failed.row) == ("a", 2)
    assert failed.reason.startswith("line 2: it has 4 fields, the header has 2")


def test_bytes_of_another_encoding_fail_their_row_and_name_the_option(reader: Reader) -> None:
    (_, reason), good = told(reader("latin1.csv"))
    assert reason.startswith("line 2: this is not UTF-8, from byte 5 on")
    assert "--encoding, such as latin-1, which reads 'a,grüße'" in reason
    assert good == ("b", "plain")


def test_two_columns_of_one_name_are_refused(reader: Reader) -> None:
    with pytest.raises(InvalidRequestError, match="has 2 columns named 'text'"):
        reader("two-text-columns.csv")


def test_another_delimiter_is_recognised_and_named(reader: Reader) -> None:
    with pytest.raises(InvalidRequestError, match=r"no column 'text'.* state --delimiter ';'"):
        reader("semicolons.csv")


def test_no_two_rows_share_an_id_unless_the_input_did(reader: Reader) -> None:
    documents = reader("ids.jsonl")
    assert [(document.id, document.row) for document in documents] == [
        (3, 1),
        (0, 2),
        (None, 3),
        ("0", 4),
        ("a", 5),
        ("a", 6),
        (None, 7),
    ]
    assert told(documents)[-1][1] == "line 7: the id in 'id' is 1e+20: an id is a string or a whole number"
