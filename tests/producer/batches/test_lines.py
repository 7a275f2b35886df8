"""What an input of a batch may hold, and what is said of one that may not be run."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from impetus_producer.batches import lines
from impetus_producer.batches.lines import read_lines, survey
from impetus_producer.errors import InvalidRequestError

from .requests import CHAT, EMBEDDINGS, chat, embedding, jsonl


def errors_of(text: bytes, endpoint: str | None = None) -> list[tuple[str, int | None, str | None]]:
    return [(error.code, error.line, error.param) for error in survey(io.BytesIO(text), endpoint).errors]


def test_an_input_in_order_is_counted_and_read_line_by_line() -> None:
    text = b"\xef\xbb\xbf" + jsonl([embedding("a"), chat("ü")]) + b"\n" + json.dumps(chat("c")).encode()
    found = survey(io.BytesIO(text))
    assert (found.lines, sorted(found.roles), found.errors) == (3, ["embedding", "generation"], ())
    read = list(read_lines(io.BytesIO(text)))
    assert [(line.number, line.custom_id, line.url) for line in read] == [
        (1, "a", EMBEDDINGS),
        (2, "ü", CHAT),
        (4, "c", CHAT),
    ]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"{", ("invalid_json_line", None)),
        (b"[1]", ("invalid_json_line", None)),
        (b'{"custom_id": NaN}', ("invalid_json_line", None)),
        (b'{"custom_id": "a", "x": 1e999}', ("invalid_json_line", None)),
        (b"\xff\xfe{}", ("invalid_json_line", None)),
        (b"[" * 100_000, ("invalid_json_line", None)),
        (embedding("a") | {"body": [1]}, ("invalid_body", "body")),
        (embedding(""), ("invalid_custom_id", "custom_id")),
        (embedding("x" * 513), ("invalid_custom_id", "custom_id")),
        (embedding("a") | {"custom_id": 3}, ("invalid_custom_id", "custom_id")),
        (embedding("a") | {"method": "GET"}, ("invalid_method", "method")),
        (embedding("a") | {"url": "/v1/images"}, ("invalid_url", "url")),
        (embedding("a") | {"url": ["/v1/embeddings"]}, ("invalid_url", "url")),
        (embedding("a") | {"priority": 1}, ("unknown_parameter", "priority")),
        ({"custom_id": "a", "method": "POST", "url": EMBEDDINGS}, ("missing_required_parameter", "body")),
        (chat("a"), ("mismatched_endpoint", "url")),
        (embedding("first"), ("duplicate_custom_id", "custom_id")),
    ],
)
def test_what_is_wrong_is_told_with_its_line(line: Any, error: tuple[str, str | None]) -> None:
    second = line if isinstance(line, bytes) else json.dumps(line).encode()
    text = jsonl([embedding("first")]) + second + b"\n" + jsonl([embedding("last")])
    code, param = error
    assert errors_of(text, EMBEDDINGS) == [(code, 2, param)]


def test_the_limits_are_openais_and_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (lines.MAX_LINES, lines.MAX_BYTES) == (50_000, 200_000_000)
    monkeypatch.setattr(lines, "MAX_LINES", 3)
    assert errors_of(jsonl(embedding(f"{n}") for n in range(3))) == []
    assert errors_of(jsonl(embedding(f"{n}") for n in range(5))) == [("too_many_requests", 4, None)]
    monkeypatch.setattr(lines, "MAX_BYTES", 150)
    assert errors_of(jsonl(embedding(f"{n}") for n in range(3))) == [("file_too_large", None, None)]
    assert errors_of(b"\n  \n") == [("empty_file", None, None)]


def test_a_line_that_is_too_long_is_one_line_and_the_next_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_MAX_LINE_BYTES", 120)
    long = jsonl([embedding("long", "x" * 500)])
    for text in (long, long.rstrip(), long + jsonl([embedding("b")])):
        assert errors_of(jsonl([embedding("a")]) + text) == [("line_too_large", 2, None)]
    assert errors_of(long + b"{\n") == [("line_too_large", 1, None), ("invalid_json_line", 2, None)]
    just = jsonl([embedding("a")]).rstrip().ljust(119) + b"\n"
    assert errors_of(just + jsonl([embedding("b")])) == []


def test_lines_may_end_as_windows_ends_them_with_empty_ones_between() -> None:
    text = b"\xef\xbb\xbf\r\n" + jsonl([embedding("a"), embedding("b")]).replace(b"\n", b"\r\n\r\n")
    assert [(line.number, line.custom_id) for line in read_lines(io.BytesIO(text))] == [(2, "a"), (4, "b")]
    assert errors_of(text) == []


def test_no_more_errors_are_told_than_anybody_reads() -> None:
    assert len(errors_of(b"{\n" * 1000)) == lines.MAX_ERRORS


def test_an_input_that_changed_meanwhile_is_noticed() -> None:
    with pytest.raises(InvalidRequestError, match="changed while it was run: line 2: this line is no JSON"):
        list(read_lines(io.BytesIO(jsonl([embedding("a")]) + b"oops\n")))
