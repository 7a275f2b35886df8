"""Why there is no answer, in OpenAI's words: a status as of HTTP, and the error object.

Source of the shape: https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..contract import EmbeddingRequest, GenerationRequest, RerankRequest
from ..errors import (
    ImpetusError,
    InvalidRequestError,
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    ResultTimeoutError,
    ServerConfigurationError,
    ServerError,
    StreamRestartedError,
    UnreadableResultError,
)
from ..shown import printable, shortened

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_MAX_SENTENCE_CHARACTERS = 2_000
_REQUEST_FIELDS = frozenset(
    name for request in (GenerationRequest, EmbeddingRequest, RerankRequest) for name in request.model_fields
)
#: What sentences of workers, and of the servers that some forward to, say of a prompt that is too long.
_TOO_LONG = re.compile(r"context[ _](?:length|size|window)|tokens exceed|prompt is too long", re.IGNORECASE)
#: What workers say that a job failed of, where it is not the model's own fault.
_STATUS_OF_FAILURES = {"InvalidRequestError": 400, "JobTimeoutError": 504}


@dataclass(frozen=True, slots=True)
class Refusal:
    """One sentence. `param`: the field that is wrong. `code`: for programs."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = shortened(printable(self.message), _MAX_SENTENCE_CHARACTERS)
        return {"error": {"message": message, "type": kind, "param": self.param or None, "code": self.code}}


def refusal_of(error: ImpetusError) -> Refusal:
    """What the producer raised, as it is said over HTTP."""
    match error:
        case InvalidRequestError():
            return Refusal(400, str(error), param=error.field, code=error.code)
        case JobFailedError():
            return _failure(error)
        case JobCancelledError():
            return Refusal(409, str(error), code="job_cancelled")
        case JobNotFoundError():
            return Refusal(404, str(error), code="job_not_found")
        case ResultTimeoutError():
            return Refusal(504, "there was no result in time", code="timeout")
        case StreamRestartedError():
            sentence = "the worker died and began anew, so what was sent is void: ask again"
            return Refusal(503, sentence, code="stream_restarted")
        case UnreadableResultError():
            return Refusal(502, str(error), code="unreadable_result")
        case ServerConfigurationError():
            return Refusal(503, "the queue's server does not allow that", code="queue_refuses")
        case ServerError():
            # What it says names hosts that are none of a stranger's business.
            return Refusal(503, "the queue's server is not to be reached; try again", code="queue_unavailable")
    return Refusal(500, str(error), code="failed")


def _failure(error: JobFailedError) -> Refusal:
    status = _STATUS_OF_FAILURES.get(error.reason, 500)
    field, separator, _ = str(error).partition(": ")
    param = field if status == 400 and separator and field.split(".")[0] in _REQUEST_FIELDS else None
    if param == "model":
        return Refusal(404, str(error), param=param, code="model_not_found")
    if status == 400 and _TOO_LONG.search(str(error)):
        return Refusal(400, str(error), code="context_length_exceeded")
    return Refusal(status, str(error), param=param, code="invalid_value" if param else error.reason or "failed")
