"""`/v1/chat/completions`. Source: https://platform.openai.com/docs/api-reference/chat

What is answered is in `chat_completions.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..contract import GenerationRequest
from ..enqueueing.parsing import parse_request
from ..errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

ENDPOINT = "/v1/chat/completions"
_OURS = ("prompt", "cancel_if_abandoned")
"""Fields of the contract that a chat does not have."""


def chat_payload(fields: Mapping[str, Any]) -> tuple[GenerationRequest, dict[str, Any]]:
    """What a body asks for, and what is sent for it. Raises `InvalidRequestError`."""
    said = GenerationRequest.what_says_something(dict(fields))
    for name in _OURS:
        if name in said:
            raise InvalidRequestError(f"{name}: there is no such field", field=name, code="unknown_parameter")
    return parse_request(GenerationRequest, said), said
