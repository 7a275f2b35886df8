"""What is said instead of an answer: a status, and OpenAI's error object.

Source of the shape: https://platform.openai.com/docs/guides/error-codes, and .../api-reference/streaming for events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from impetus_producer.contract import GenerationRequest
from impetus_producer.errors import (
    ImpetusError,
    InvalidRequestError,
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    ResultTimeoutError,
    ServerError,
    StreamRestartedError,
    UnreadableResultError,
)
from impetus_producer.shown import printable, shortened

if TYPE_CHECKING:
    from collections.abc import Mapping

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_MAX_SENTENCE_CHARACTERS = 2_000
_REQUEST_FIELDS = frozenset({*GenerationRequest.model_fields, "input", "dimensions", "input_type", "truncate"})
#: What workers say that a job failed of, where it is not the model's own fault.
_STATUS_OF_FAILURES = {"InvalidRequestError": 400, "JobTimeoutError": 504}


class HttpError(Exception):
    """Ends a request with `status` and one sentence. `param`: the field that is wrong. `code`: for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = shortened(printable(message), _MAX_SENTENCE_CHARACTERS)
        self.param = param or None
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def busy(message: str, retry_after_s: float, code: str = "rate_limit_exceeded") -> HttpError:
    """429, and when to come again."""
    return HttpError(429, message, code=code, headers={"Retry-After": str(max(1, round(retry_after_s)))})


def unavailable(message: str, retry_after_s: float = 5, code: str = "unavailable") -> HttpError:
    """503, and when to come again."""
    return HttpError(503, message, code=code, headers={"Retry-After": str(max(1, round(retry_after_s)))})


def http_error(error: ImpetusError) -> HttpError:
    """What the producer raised, as it is said over HTTP."""
    match error:
        case InvalidRequestError():
            return HttpError(400, str(error), param=error.field, code="invalid_request")
        case JobFailedError():
            return _failure(error)
        case JobCancelledError():
            return HttpError(409, str(error), code="job_cancelled")
        case JobNotFoundError():
            return HttpError(404, str(error), code="job_not_found")
        case ResultTimeoutError():
            return HttpError(504, "there was no result in time", code="timeout")
        case StreamRestartedError():
            sentence = "the worker died and began anew, so what was sent is void: ask again"
            return HttpError(503, sentence, code="stream_restarted")
        case UnreadableResultError():
            return HttpError(502, str(error), code="unreadable_result")
        case ServerError():
            # What it says names hosts that are none of a stranger's business.
            return unavailable("the queue's server is not to be reached; try again", code="queue_unavailable")
    return HttpError(500, str(error), code="failed")


def _failure(error: JobFailedError) -> HttpError:
    status = _STATUS_OF_FAILURES.get(error.reason, 500)
    field, separator, _ = str(error).partition(": ")
    if status != 400 or not separator or field.split(".")[0] not in _REQUEST_FIELDS:
        return HttpError(status, str(error), code=error.reason or "failed")
    if field == "model":
        return HttpError(404, str(error), param=field, code="model_not_found")
    return HttpError(400, str(error), param=field, code="invalid_request")
