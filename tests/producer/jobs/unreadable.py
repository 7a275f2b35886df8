"""Results that cannot be read, as a broken or hostile writer leaves them."""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING, Any

from impetus_producer.contract import MAX_TEXTS_PER_JOB
from impetus_producer.enqueueing import jobs

from ..stock_worker import embedding_of

if TYPE_CHECKING:
    from redis import Redis


def encoded(value: Any) -> bytes:
    return base64.b64encode(value if isinstance(value, bytes) else json.dumps(value).encode())


def block_of(data: Any, shape: Any = (1, 2)) -> bytes:
    """A return value whose vectors are these."""
    made = embedding_of(["a"])
    made["embeddings"] |= {"shape": shape, "data": data}
    return encoded(made)


def end(connection: Redis, job_id: str, status: str = "finished", **fields: Any) -> None:
    """Ends a job with an entry of exactly these fields."""
    connection.hset(jobs.job_key(job_id), "status", status)
    written: Any = fields or {"nothing": 1}
    connection.xadd(jobs.results_key(job_id), written)


TWO = struct.pack("<2f", 1, 2)
UNREADABLE: dict[str, dict[str, Any]] = {
    "no type": {"return_value": encoded(embedding_of(["a"]))},
    "a word for a type": {"type": "abc"},
    "a type with 5,000 digits": {"type": "1" * 5000},
    "a type that nobody knows": {"type": 17},
    "no return value": {"type": 1},
    "bad base64": {"type": 1, "return_value": "!a"},
    "no JSON": {"type": 1, "return_value": encoded(b"{")},
    "no UTF-8": {"type": 1, "return_value": encoded(b'"\xff"')},
    "JSON nested without end": {"type": 1, "return_value": encoded(b"[" * 100_000)},
    "a number with 5,000 digits": {"type": 1, "return_value": encoded(b"1" * 5000)},
    "a number": {"type": 1, "return_value": encoded(5)},
    "a number beside vectors": {"type": 1, "return_value": encoded(5), "vectors": TWO},
    "an object without vectors beside vectors": {
        "type": 1,
        "return_value": encoded({"embeddings": []}),
        "vectors": TWO,
    },
    "no result": {"type": 1, "return_value": encoded({"a": 1})},
    "half a surrogate pair": {"type": 1, "return_value": encoded(embedding_of(["a"]) | {"model": "\ud800"})},
    "rows without numbers": {"type": 1, "return_value": block_of("", (1_000_000_000, 0))},
    "more rows than texts": {"type": 1, "return_value": block_of("", (MAX_TEXTS_PER_JOB + 1, 1))},
    "a negative shape": {"type": 1, "return_value": block_of(encoded(TWO).decode(), (-1, -2))},
    "no rows of endless width": {"type": 1, "return_value": block_of("", (0, 10**30))},
    "too few bytes": {"type": 1, "return_value": block_of(encoded(TWO[:-1]).decode())},
    "too many bytes": {"type": 1, "return_value": block_of(encoded(TWO + TWO).decode())},
    "vectors that are no base64": {"type": 1, "return_value": block_of("!" * 11)},
    "vectors that are no ASCII": {"type": 1, "return_value": block_of("ü" * 11)},
    "raw vectors of another size": {"type": 1, "return_value": block_of("", (1, 2)), "vectors": TWO + b"x"},
    "ragged rows": {"type": 1, "return_value": block_of([[1.0, 2.0], [1.0]], (2, 2))},
    "rows that are missing": {"type": 1, "return_value": block_of([[1.0, 2.0]], (2, 2))},
    "words for numbers": {"type": 1, "return_value": block_of([["a", "b"]])},
}
