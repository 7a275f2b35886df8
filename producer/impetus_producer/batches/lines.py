"""The lines of a batch's input: JSONL of `custom_id`, `method`, `url`, `body`.

What is wrong with a body is the line's own matter, and found when it is run; all else that is wrong refuses the batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..bodies.strict import read_json
from ..contract.conversation import json_type
from ..errors import InvalidRequestError
from ..shown import name_shown
from .endpoints import ENDPOINTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import BinaryIO

MAX_LINES = 50_000
MAX_BYTES = 200_000_000
MAX_ERRORS = 100
"""So many are told of one input."""
MAX_CUSTOM_ID_CHARACTERS = 512
_MAX_LINE_BYTES = 64_000_000
_FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request. `number`: which line it is, from 1."""

    number: int
    custom_id: str
    url: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class InputError:
    """Why an input is refused, in OpenAI's words. `line`: none where it is about the whole."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Survey:
    """What an input holds. It may be run only if there are no errors."""

    lines: int
    urls: frozenset[str]
    digest: str
    errors: tuple[InputError, ...]

    @property
    def roles(self) -> frozenset[str]:
        """Of the workers that it needs."""
        return frozenset(ENDPOINTS[url].role for url in self.urls)


class _LineError(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def survey(file: BinaryIO, endpoint: str | None = None) -> Survey:
    """Reads an input to its end. `endpoint`: which all lines must ask for; none means any that there is."""
    errors: list[InputError] = []
    ids: dict[str, int] = {}
    urls = set()
    digest = hashlib.sha256()
    size = 0
    for number, text in _texts(file):
        digest.update(text)
        size += len(text)
        if size > MAX_BYTES:
            errors.append(InputError("file_too_large", f"the input is larger than {MAX_BYTES:,} bytes"))
            break
        if not text.strip():
            continue
        if len(ids) == MAX_LINES:
            errors.append(InputError("too_many_requests", f"more than {MAX_LINES:,} requests: split the input", number))
            break
        try:
            line = parse_line(number, text, endpoint)
            if (before := ids.setdefault(line.custom_id, number)) != number:
                shown = name_shown(line.custom_id)
                raise _LineError("duplicate_custom_id", f"{shown!r} is that of line {before} too", "custom_id")
            urls.add(line.url)
        except _LineError as error:
            errors.append(InputError(error.code, str(error), number, error.param))
            if len(errors) == MAX_ERRORS:
                break
    if not ids and not errors:
        errors.append(InputError("empty_file", "there are no requests in it"))
    return Survey(len(ids), frozenset(urls), digest.hexdigest(), tuple(errors))


def read_lines(file: BinaryIO) -> Iterator[BatchLine]:
    """The lines of an input that `survey` found nothing wrong with."""
    for number, text in _texts(file):
        if text.strip():
            try:
                yield parse_line(number, text, None)
            except _LineError as error:
                raise InvalidRequestError(f"the input changed while it was run: line {number}: {error}") from None


def _texts(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    number = 0
    while text := file.readline(_MAX_LINE_BYTES + 1):
        number += 1
        # Of a line that is too long the rest is passed over.
        rest = text
        while len(rest) > _MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(_MAX_LINE_BYTES + 1)
        yield number, text.removeprefix(b"\xef\xbb\xbf") if number == 1 else text


def parse_line(number: int, text: bytes, endpoint: str | None) -> BatchLine:
    if len(text) > _MAX_LINE_BYTES:
        raise _LineError("line_too_large", f"this line is longer than {_MAX_LINE_BYTES:,} bytes")
    try:
        line = read_json(text)
    except ValueError as error:
        raise _LineError("invalid_json_line", f"this line is no JSON: {error}") from None
    if not isinstance(line, dict):
        raise _LineError("invalid_json_line", f"a line is a JSON object, not {json_type(line)}")
    for name in _FIELDS:
        if name not in line:
            raise _LineError("missing_required_parameter", f"{name}: this field is required", name)
    if unknown := line.keys() - set(_FIELDS):
        name = name_shown(min(unknown))
        raise _LineError("unknown_parameter", f"{name}: there is no such field", name)
    custom_id, method, url, body = (line[name] for name in _FIELDS)
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARACTERS:
        most = MAX_CUSTOM_ID_CHARACTERS
        raise _LineError("invalid_custom_id", f"custom_id: must be a text of 1 to {most} characters", "custom_id")
    if method != "POST":
        raise _LineError("invalid_method", "method: must be POST", "method")
    if not isinstance(url, str) or url not in ENDPOINTS:
        raise _LineError("invalid_url", f"url: must be one of {', '.join(ENDPOINTS)}", "url")
    if endpoint is not None and url != endpoint:
        raise _LineError("mismatched_endpoint", f"url: must be the batch's, {endpoint}", "url")
    if not isinstance(body, dict):
        raise _LineError("invalid_body", f"body: must be a JSON object, not {json_type(body)}", "body")
    return BatchLine(number, custom_id, url, body)
