"""Bodies of requests: bytes from strangers, read in bounded memory and time, as strict JSON."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from impetus_producer.bodies.strict import read_json

from .errors import HttpError, busy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request

    from ..settings import Settings


@dataclass(slots=True)
class Room:
    """So many bytes are held for a body."""

    size: int


class Bodies:
    """Of all requests to one gateway."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._held_bytes = 0

    @contextmanager
    def room(self, request: Request) -> Iterator[Room]:
        """Holds room for a body for the time of the block.

        Raises `HttpError` 413 where the body says that it is larger than any may be, 429 where all the room is taken.
        """
        said = request.headers.get("content-length", "")
        most = self._settings.max_body_bytes
        size = int(said) if said.isascii() and said.isdecimal() and len(said) < 20 else most
        if size > most:
            raise self.too_large()
        if self._held_bytes + size > self._settings.max_held_bytes:
            raise busy("too many large requests are being answered; try again", 1, code="overloaded")
        room = Room(size)
        self._held_bytes += size
        try:
            yield room
        finally:
            self._held_bytes -= room.size

    async def read(self, request: Request, room: Room) -> bytes:
        """The whole of it, after which it takes no more room than it needs. Raises `HttpError` 413, 415 or 408."""
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise HttpError(415, "compressed bodies are not read: send it as it is", code="unsupported_encoding")
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.read_timeout_s):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > room.size:
                        raise self.too_large()
                    chunks.append(chunk)
        except TimeoutError:
            raise HttpError(408, "the request's body did not come in time", code="body_timeout") from None
        self._held_bytes -= room.size - size
        room.size = size
        return b"".join(chunks)

    def too_large(self) -> HttpError:
        return HttpError(
            413, f"the body is larger than the {self._settings.max_body_bytes:,} bytes allowed", code="body_too_large"
        )


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises `HttpError` 400."""
    try:
        value = read_json(body)
    except ValueError as error:
        raise HttpError(400, f"the body is no JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise HttpError(400, "the body must be a JSON object", code="invalid_json")
    return value
