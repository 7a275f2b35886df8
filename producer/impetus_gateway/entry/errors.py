"""What is said instead of an answer: a status, and OpenAI's error object.

Source of the shape: https://platform.openai.com/docs/guides/error-codes, and .../api-reference/streaming for events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from impetus_producer.batches.store import NotKeptError
from impetus_producer.bodies.refusals import Refusal, refusal_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from impetus_producer.errors import ImpetusError


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
        self.refusal = Refusal(status, message, param, code)
        self.headers = dict(headers or {})

    @property
    def message(self) -> str:
        """For people."""
        return str(self.body()["error"]["message"])

    def body(self) -> dict[str, Any]:
        return self.refusal.body()


def busy(message: str, retry_after_s: float, code: str = "rate_limit_exceeded") -> HttpError:
    """429, and when to come again."""
    return HttpError(429, message, code=code, headers={"Retry-After": str(max(1, round(retry_after_s)))})


def unavailable(message: str, retry_after_s: float = 5, code: str | None = "unavailable") -> HttpError:
    """503, and when to come again."""
    return HttpError(503, message, code=code, headers={"Retry-After": str(max(1, round(retry_after_s)))})


def http_error(error: ImpetusError) -> HttpError:
    """What the producer raised, as it is said over HTTP."""
    if isinstance(error, NotKeptError):
        return HttpError(404, str(error), code="not_found")
    refusal = refusal_of(error)
    if refusal.status == 503:
        return unavailable(refusal.message, code=refusal.code)
    return HttpError(refusal.status, refusal.message, param=refusal.param, code=refusal.code)
