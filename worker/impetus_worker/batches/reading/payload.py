"""The untrusted bytes of a job: what it asks for, or one sentence that says what is wrong with them.

Nothing here imports, unpickles or calls anything that a job names.
"""

from __future__ import annotations

import json
import re
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from impetus_producer.contract import MAX_PAYLOAD_BYTES

from ...allowed import NOTHING
from ...errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...allowed import Allowed

_MAX_VALUES = 100_000
"""How many values the JSON of a payload may hold: each costs some 60 bytes and more, though two characters make one."""
_STRUCTURE = (b",", b":", b"[", b"{")
# A string that is never closed ends with the payload: nothing is looked at twice.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


class LongPayloadError(Exception):
    """The payload is longer, inflated, than the caller wants to read; whether it is good is not known."""


def read_payload(
    fields: Mapping[bytes, bytes], function: str, allowed: Allowed = NOTHING, most_bytes: int = MAX_PAYLOAD_BYTES
) -> Any:
    """The request of a job that calls `function`, as plain JSON data, and that asks for no more than is `allowed`;
    `fields` is RQ's job hash.

    Raises `InvalidRequestError`, and `LongPayloadError` where it is longer than `most_bytes`, a limit of the caller's
    within the contract's.
    """
    allowed.check(fields)
    return _request(_call(_inflate(fields, most_bytes)), function)


def _inflate(fields: Mapping[bytes, bytes], most_bytes: int) -> bytes:
    data = fields.get(b"data")
    if fields.get(b"impetus_too_large"):
        raise InvalidRequestError("data: the job's hash is longer than a worker reads, or has more fields than any job")
    if not data:
        raise InvalidRequestError("data: the job carries none")
    inflated, is_cut = data, False
    if not data.startswith(b"["):  # which nothing that inflates begins with
        inflater = zlib.decompressobj()
        with suppress(zlib.error):  # RQ, too, takes what does not inflate as it stands
            inflated = inflater.decompress(data, most_bytes)
            is_cut = bool(inflater.unconsumed_tail)
    if is_cut or len(inflated) > most_bytes:
        if most_bytes < MAX_PAYLOAD_BYTES:
            raise LongPayloadError
        raise InvalidRequestError(f"data: the payload is larger than {MAX_PAYLOAD_BYTES:,} bytes")
    return inflated


def _call(data: bytes) -> list[Any]:
    # Each value has a character of structure. Most payloads are few of these and much text, and need no closer look.
    if len(data) > _MAX_VALUES and _structure(data) > _MAX_VALUES and _structure(_STRING.sub(b"", data)) > _MAX_VALUES:
        raise InvalidRequestError(f"data: this JSON holds more than the {_MAX_VALUES:,} values that a job may carry")
    try:
        call = json.loads(data)
    except UnicodeDecodeError:
        raise InvalidRequestError(
            "data: these bytes are not JSON (a pickle, perhaps): enqueue with serializer=rq.serializers.JSONSerializer"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(
            f"data: this is not JSON ({str(error)[:80]}): enqueue with serializer=rq.serializers.JSONSerializer"
        ) from None
    if not (isinstance(call, list) and len(call) == 4 and isinstance(call[2], list) and isinstance(call[3], dict)):
        raise InvalidRequestError("data: this is not an RQ call of a function, an instance, arguments and keywords")
    return call


def _structure(data: bytes) -> int:
    return sum(map(data.count, _STRUCTURE))


def _request(call: list[Any], function: str) -> Any:
    name, instance, arguments, keywords = call
    if name != function or instance is not None:
        raise InvalidRequestError(
            f"function: this queue runs {function} and no other, and this job names {name!r:.100}"
        )
    if len(arguments) == 1 and not keywords:
        return arguments[0]
    if not arguments and list(keywords) == ["request"]:
        return keywords["request"]
    raise InvalidRequestError(
        f"arguments: {function} takes one JSON object, and this job passes "
        f"{len(arguments)} arguments and the keywords {sorted(keywords)!r:.100}"
    )
