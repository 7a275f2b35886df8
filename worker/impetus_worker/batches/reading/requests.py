"""What the jobs of generation ask for, and what only the model in service can say about it. Knows nothing of batches.

Reads a job wherever it lies: in the loop, or in the process that reads the long ones. `rows.py` does so for the roles
that have their texts tokenised by the worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from impetus_producer.contract import GENERATE_FUNCTION, MAX_PAYLOAD_BYTES, GenerationRequest
from impetus_producer.enqueueing.parsing import parse_request

from ...errors import InvalidRequestError
from .payload import read_payload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from impetus_backends.protocol import EngineInfo

    from ...allowed import Allowed


class GenerationRequests:
    """Of one engine. Every method raises `InvalidRequestError` for what is wrong with a request."""

    def __init__(self, info: EngineInfo, allowed: Allowed) -> None:
        self._info = info
        self._allowed = allowed

    def parse(self, fields: Mapping[bytes, bytes], most_bytes: int = MAX_PAYLOAD_BYTES) -> GenerationRequest:
        """The request in RQ's job hash. Raises `LongPayloadError` where it is longer than `most_bytes`."""
        payload = read_payload(fields, GENERATE_FUNCTION, self._allowed, most_bytes)
        request = parse_request(GenerationRequest, payload)
        check_model(request.model, self._info)
        if not self._info.takes_parts:
            self._check_parts(request)
        return request

    def _check_parts(self, request: GenerationRequest) -> None:
        for at, message in enumerate(request.messages or ()):
            for place, part in enumerate(message.content):
                if part.other is not None:
                    field = f"messages.{at}.content.{place}"
                    raise InvalidRequestError(f"{field}: {part.what}, and this model reads text", field=field)

    def read(self, fields: Mapping[bytes, bytes]) -> GenerationRequest:
        """All of it at once. Its tokens are made in the engine, which has the chat template."""
        return self.parse(fields)


def check_model(asked: str | None, info: EngineInfo) -> None:
    """Raises `InvalidRequestError` when a request asks for a model that this engine does not serve."""
    if asked is not None and asked not in info.model_aliases:
        served = ", ".join((info.model, *info.more_models))
        raise InvalidRequestError(
            f"model: this worker serves {served} and not {asked!r:.200}; start one with "
            f"`impetus-worker run --{info.kind}-model …`, or this one with `--more-{info.kind}-models …`"
        )
