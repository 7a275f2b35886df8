"""How failures of workers are said over HTTP."""

from __future__ import annotations

import pytest

from impetus_producer.bodies.refusals import refusal_of
from impetus_producer.errors import JobFailedError


@pytest.mark.parametrize(
    ("sentence", "status", "code", "param"),
    [
        ("this model's maximum context length is 1024 tokens, fewer than 2,000", 400, "context_length_exceeded", None),
        ("the server said: prompt is too long: 9 tokens", 400, "context_length_exceeded", None),
        ("model: this worker serves m and not 'long_context_window'", 404, "model_not_found", "model"),
        ("tools: this model has none", 400, "invalid_value", "tools"),
        ("colours: there are none", 400, "InvalidRequestError", None),
    ],
)
def test_a_failure_that_a_request_causes_has_openais_code(
    sentence: str, status: int, code: str, param: str | None
) -> None:
    said = refusal_of(JobFailedError("id", sentence, "InvalidRequestError"))
    assert (said.status, said.code, said.param) == (status, code, param)
    other = refusal_of(JobFailedError("id", sentence, "RuntimeError"))
    assert (other.status, other.code, other.param) == (500, "RuntimeError", None)
