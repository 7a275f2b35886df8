"""What the body of an answer holds: server-sent events, or one JSON document, whatever its headers call it.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from .failures import UpstreamError, error_of, said_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LONGEST = 64 * 2**20
"""Of a line, an event or a document."""
_EVENTS = re.compile(r"(?:data|event|id|retry|error)?:|data$")
"""How the first line of events begins."""
_DONE = "[DONE]"


class Body(Protocol):
    def readline(self, limit: int, /) -> bytes: ...


def chunks_of(body: Body) -> Iterator[dict[str, Any]]:
    """The JSON objects in it, until the last event or the end. Raises `UpstreamError` for anything else."""
    lines = _lines(body)
    first = next((line for line in lines if line), None)
    if first is None:
        return
    if _EVENTS.match(first):
        yield from _events(chain((first,), lines))
    else:
        yield _object(_joined(chain((first,), lines)))


def _lines(body: Body) -> Iterator[str]:
    mark = "\ufeff"  # may stand before the first
    while raw := body.readline(_LONGEST):
        if len(raw) == _LONGEST:
            raise _too_long()
        for line in raw.rstrip(b"\r\n").split(b"\r"):
            yield line.decode("utf-8", "replace").removeprefix(mark)
            mark = ""


def _events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    data: list[str] = []
    size, kind = 0, ""
    for line in chain(lines, ("",)):  # the last event may lack the line that ends it
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
            size += len(value)
            if size > _LONGEST:
                raise _too_long()
        elif field == "event":
            kind = value
        elif field == "error":  # so does llama.cpp, in the middle of a stream
            raise error_of(_json(value))
        elif not line:
            event = "\n".join(data).strip()
            if event == _DONE:
                return
            if kind == "error":
                raise error_of(_json(event))
            if event:
                yield _object(event)
            data, size, kind = [], 0, ""


def _joined(lines: Iterable[str]) -> str:
    parts: list[str] = []
    size = 0
    for line in lines:
        parts.append(line)
        size += len(line)
        if size > _LONGEST:
            raise _too_long()
    return "\n".join(parts)


def _object(text: str) -> dict[str, Any]:
    value = _json(text)
    if not isinstance(value, dict):
        raise UpstreamError(f"the upstream sent what is no JSON object: {said_by(text)[:100]!r}")
    return value


def _json(text: str) -> Any:
    """Text that is no JSON as it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _too_long() -> UpstreamError:
    return UpstreamError(f"the upstream sent more than {_LONGEST:,} bytes at once")
