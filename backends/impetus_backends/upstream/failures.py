"""How a server says that it did not serve a request: by a status, in a body, or in the middle of an answer."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from ..errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SAID_CHARACTERS = 300
_STATUS = re.compile(r"[45]\d\d", re.ASCII)


class UpstreamError(BackendError):
    """The server did not serve a request. `permanent`: it would not serve the same one again either. `status`: what it
    answered, where that is known."""

    def __init__(self, message: str, *, permanent: bool = False, status: int | None = None) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.status = status


def is_permanent(status: int) -> bool:
    """Whether the request is at fault, and not the moment."""
    return status < 500 and status not in (408, 409, 425, 429)


def said_by(body: str) -> str:
    """What the body of an error says, on one line, at most 300 characters of it."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        value = body
    for _ in range(4):
        if not isinstance(value, dict):
            break
        value = next((value[name] for name in ("error", "message", "detail") if value.get(name)), json.dumps(value))
    text = " ".join((value if isinstance(value, str) else json.dumps(value)).split())[:_SAID_CHARACTERS]
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


def error_in(chunk: Mapping[str, Any]) -> UpstreamError | None:
    """A server that has begun to answer has no status left to say that it failed; it says so in a chunk."""
    says_why = isinstance(chunk.get("message"), str) or "detail" in chunk  # as vLLM did once, and as FastAPI does
    return error_of(chunk) if chunk.get("error") or (says_why and "choices" not in chunk) else None


def error_of(said: Any) -> UpstreamError:
    """What a server that says this has failed of. `said`: JSON, or text."""
    error = (said.get("error") or said) if isinstance(said, dict) else said
    code = str(error.get("code")) if isinstance(error, dict) else ""
    permanent = _STATUS.fullmatch(code) is not None and is_permanent(int(code))
    return UpstreamError(f"the upstream failed while it answered: {said_by(json.dumps(error))}", permanent=permanent)
