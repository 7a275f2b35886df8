"""Answers as bytes: JSON, and errors in the shape of whose API was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic_core import to_json
from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .errors import HttpError

OLLAMA = "/api/"
"""What Ollama's endpoints begin with."""


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        to_json(value, inf_nan_mode="null"), status, headers=dict(headers or {}), media_type="application/json"
    )


def error_answer(error: HttpError, path: str) -> Response:
    """In OpenAI's shape; in Ollama's, which is the sentence alone, where its endpoints were asked."""
    body = {"error": error.message} if path.startswith(OLLAMA) else error.body()
    return json_answer(body, error.status, error.headers)
