"""Jobs, records and keys as somebody might write them who means harm, or has a bug: made at random under a seed.

Most are close to what is right, for what is far from it is refused at the first look. Whatever would be executed, if
anything here were, makes the file `canary`.
"""

from __future__ import annotations

import copy
import json
import pickle
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

FUNCTIONS = {
    "embedding": "impetus_worker.jobs.embed",
    "generation": "impetus_worker.jobs.generate",
    "rerank": "impetus_worker.jobs.rerank",
}
_REQUESTS: dict[str, list[dict[str, Any]]] = {
    "embedding": [
        {"input": "a text"},
        {"input": ["one", "two"], "model": None, "dimensions": 8, "truncate": False},
        {"input": "a text", "encoding_format": "raw", "input_type": "query"},
    ],
    "generation": [
        {"prompt": "once", "max_tokens": 3},
        {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "stop": ["x"], "seed": 1, "top_k": 2},
        {"prompt": "{", "max_tokens": 3, "response_format": {"type": "json_object"}, "logprobs": True, "stream": True},
    ],
    "rerank": [
        {"query": "what", "documents": ["one", "two"]},
        {"query": "what", "documents": ["one"], "model": None, "top_n": 1, "max_tokens_per_doc": 3, "truncate": False},
        {"query": "what", "documents": [{"text": "one"}, "two"], "return_documents": True},
    ],
}
GOOD: dict[str, dict[str, Any]] = {
    "embedding": {"input": "good"},
    "generation": {"prompt": "good", "max_tokens": 2},
    "rerank": {"query": "good", "documents": ["good"]},
}
_NAMES = [
    *("status", "origin", "timeout", "ttl", "result_ttl", "failure_ttl", "created_at", "enqueued_at", "started_at"),
    *("ended_at", "worker_name", "last_heartbeat", "description", "result", "exc_info", "meta", "retries_left"),
    *(
        "retry_intervals",
        "repeats_left",
        "repeat_intervals",
        "group_id",
        "rate_limit_key",
        "rate_limit_max_concurrency",
    ),
    *("dependency_ids", "allow_dependency_failures", "enqueue_at_front", "success_callback_name", "webhooks"),
    *("failure_callback_name", "stopped_callback_name", "success_callback_timeout", "number_of_retries"),
    *("impetus_deaths", "impetus_suspect", "impetus_execution", "impetus_requeued", "cancel_if_abandoned"),
]
"""Fields of RQ's job hash, and some that look as if they were ours."""
_BYTES = [
    *(b"", b"0", b"-1", b"1", b"1e3", b"0x10", b"nan", b"inf", b"-0", b"1.5", b" 7", b"9" * 30, b"9" * 5000, b"true"),
    *(
        b"None",
        b"[]",
        b"{}",
        b"null",
        b"\xff\xfe\x00",
        b"\x00",
        b"a\n2026 INFO forged\x1b[31m",
        b"2026-01-01T00:00:00Z",
    ),
    *(
        b"os.system",
        b"queued",
        b"finished",
        b"stopped",
        b"../../x",
        b"x" * 100_000,
        "é☃𝄞".encode(),
        b"rq:queue:embedding",
    ),
]
_VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        10**400,
        0.5,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "\x00",
        "\ud83e",
    ),
    *(
        "\x1b[2J\n",
        "x" * 5000,
        "9" * 400,
        [],
        {},
        [[]],
        [None],
        ["a", 1],
        {"a": {"b": {"c": 1}}},
        "é☃𝄞" * 50,
        [[[[[]]]]],
    ),
]


_STRANGE_NAMES = ["x", "", "a\nb\x1b", "__class__", "input", "prompt", "tools", "é"]
_PLACES = [
    *("rq:job:{}:dependents", "rq:job:{}:dependencies", "rq:results:{}", "rq:executions:{}", "impetus:stream:{}"),
    *("impetus:cancel:{}", "impetus:awaited:{}", "rq:worker:x:executions"),
]
_PUT: list[Callable[[str, str], tuple[str, ...]]] = [
    lambda key, text: ("set", key, text),
    lambda key, text: ("rpush", key, text),
    lambda key, text: ("sadd", key, text),
    lambda key, text: ("zadd", key, "1", text),
    lambda key, text: ("hset", key, text or "f", text),
    lambda key, text: ("xadd", key, "*", "f", text),
]


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self._file), "w")


class Hostile:
    """Makes one thing after the other. `canary`: the file that whatever is executed would make."""

    def __init__(self, random: random.Random, canary: Path) -> None:
        self._random = random
        self._canary = canary
        self._pickle = pickle.dumps(("os.system", None, (Canary(canary),), {}))

    def fields(self, role: str) -> dict[str, bytes]:
        """The hash of a job for a queue of a role, what RQ needs of it aside."""
        fields = {name: self._random.choice(_BYTES) for name in self._some(_NAMES, 3)}
        if len(fields.get("repeats_left", b"")) > 2:
            del fields["repeats_left"]  # it would be repeated for ever, as it says
        return fields | {"data": self._data(role)}

    def keys(self, job_id: str) -> list[tuple[str, ...]]:
        """Commands that put things in the places of a job that belong to others."""
        choose = self._random.choice
        name = choose(_PLACES).format(job_id)
        text = choose(_BYTES).decode(errors="replace")[:200]
        return [choose(_PUT)(name, text), ("expire", name, "600")]

    def record(self, number: int) -> list[tuple[str, ...]]:
        """What a worker that is none says of itself."""
        record = {
            "name": "ghost",
            "role": "embedding",
            "model": "m",
            "backend": "coreml",
            "device": "ane",
            "ttl_s": 10.0,
            "neural_engine": True,
            "since": "2026-01-01T00:00:00+00:00",
            "serving": True,
        }
        text = json.dumps(self._mutated(record))
        key = f"impetus:worker:ghost-{number % 50}"
        worker = [("sadd", "rq:workers", f"rq:worker:ghost-{number % 50}")] if self._random.random() < 0.3 else []
        return [("set", key, text.encode("utf-8", "replace").decode(), "ex", "60"), *worker]

    def _data(self, role: str) -> bytes:
        choose, chance = self._random.choice, self._random.random()
        if chance < 0.05:
            return choose(
                [self._pickle, zlib.compress(self._pickle), b"", b"\x00", b"[" * 3000, zlib.compress(b"[" * 200_000)]
            )
        call: Any = [FUNCTIONS[role], None, [self._mutated(choose(_REQUESTS[role]))], {}]
        if chance < 0.15:
            call[0] = choose(
                ["os.system", "builtins.eval", "", None, FUNCTIONS["embedding"], f"{FUNCTIONS[role]}.__class__"]
            )
            call[2] = [f"touch {self._canary}"]
        elif chance < 0.25:
            call = self._mutated(call)
        data = json.dumps(call).encode()
        if chance > 0.95:
            at = self._random.randrange(len(data))
            data = data[:at] + bytes([self._random.randrange(256)]) + data[at + self._random.randrange(2) :]
        packed = data if self._random.random() < 0.2 else zlib.compress(data, 1)
        return packed[: self._random.randrange(len(packed))] if self._random.random() < 0.03 else packed

    def _mutated(self, value: Any) -> Any:
        """A copy of JSON data with something else in a few places."""
        value = json.loads(json.dumps(value))
        for _ in range(self._random.randrange(3)):
            value = self._changed(value)
        return value

    def _changed(self, value: Any) -> Any:
        choose, chance = self._random.choice, self._random.random()
        if not isinstance(value, dict | list) or not value or chance < 0.1:
            return copy.deepcopy(choose(_VALUES))
        places: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        place = choose(places)
        if isinstance(value, dict) and chance < 0.3:
            return value | {choose(_STRANGE_NAMES): copy.deepcopy(choose(_VALUES))}
        if chance < 0.4:
            del value[place]
        else:
            value[place] = self._changed(value[place])
        return value

    def _some(self, names: list[str], most: int) -> list[str]:
        return self._random.sample(names, self._random.randrange(most + 1))
