"""Runs over many documents as others see them: each says every few seconds how far it is, `impetus status` reads it.

`impetus:run:<id>` holds what a run says, for a minute; `impetus:runs` names them. Whoever may write to the server may
write anything there: so many are read, and so much of each.
"""

from __future__ import annotations

import json
import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..enqueueing import jobs
from ..errors import ServerConfigurationError, ServerError
from ..servers.answers import known_answers
from ..servers.troubles import server_errors

if TYPE_CHECKING:
    from redis import Redis

    from ..client import Producer

_RUNS_KEY = "impetus:runs"
_RUN_KEY = "impetus:run:"
_TTL_S = 60
_EVERY_S = 5.0
_MOST_RUNS = 100
_MOST_BYTES = 4096
_MOST_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class RunState:
    """How far a run said that it is. `label`: what it does; `output`: where to; `machine` and `pid`: where it runs."""

    label: str
    output: str
    machine: str
    pid: int
    documents: int
    total: int | None = None
    docs_per_s: float | None = None
    left_s: float | None = None
    silent_s: float = 0.0
    """Since it said so."""


class Announcement:
    """What a run says of itself. Says it now and then, without waiting for a server, and raises nothing."""

    def __init__(self, producer: Producer, label: str, output: str) -> None:
        self._producer = producer
        self._about = {
            "label": label,
            "output": output[:_MOST_CHARACTERS],
            "machine": platform.node()[:_MOST_CHARACTERS],
            "pid": os.getpid(),
        }
        self._id = jobs.new_id()
        self._next_at = 0.0

    def tell(self, documents: int, total: int | None, docs_per_s: float | None, left_s: float | None) -> None:
        """To be called as often as one likes."""
        now = time.monotonic()
        if now < self._next_at or self._producer.patience.away:
            return
        self._next_at = now + _EVERY_S
        state = RunState(**self._about, documents=documents, total=total, docs_per_s=docs_per_s, left_s=left_s)  # type: ignore[arg-type]
        connection = self._producer.connection
        with suppress(ServerError), server_errors(connection), connection.pipeline(transaction=False) as pipeline:
            pipeline.set(_RUN_KEY + self._id, json.dumps(asdict(state)), ex=_TTL_S)
            pipeline.sadd(_RUNS_KEY, self._id)
            pipeline.expire(_RUNS_KEY, _TTL_S)
            pipeline.execute(raise_on_error=False)

    def close(self) -> None:
        if not self._next_at or self._producer.patience.away:
            return
        with suppress(ServerError), server_errors(), self._producer.connection.pipeline(transaction=False) as pipeline:
            pipeline.delete(_RUN_KEY + self._id)
            pipeline.srem(_RUNS_KEY, self._id)
            pipeline.execute(raise_on_error=False)


def read_runs(connection: Redis) -> tuple[RunState, ...]:
    """Those that go on now, by their outputs; none where our user may not look. Raises a `ServerError`."""
    with suppress(ServerConfigurationError), server_errors(connection):
        with connection.pipeline(transaction=False) as pipeline:
            pipeline.srandmember(_RUNS_KEY, _MOST_RUNS)
            names = known_answers(pipeline.execute(raise_on_error=False))[0] or []
        with connection.pipeline(transaction=False) as pipeline:
            for name in names:
                key = _RUN_KEY.encode() + name
                pipeline.getrange(key, 0, _MOST_BYTES)
                pipeline.pttl(key)
            answers = known_answers(pipeline.execute(raise_on_error=False))
        read = (_read(said, left_ms) for said, left_ms in zip(answers[::2], answers[1::2], strict=True))
        known = (state for state in read if state is not None)
        return tuple(sorted(known, key=lambda state: (state.output, state.pid)))
    return ()


def _read(said: bytes | None, left_ms: int | None) -> RunState | None:
    if not said or left_ms is None or left_ms <= 0:
        return None
    try:
        fields: dict[str, Any] = json.loads(said)
        words = {name: str(fields[name])[:_MOST_CHARACTERS] for name in ("label", "output", "machine")}
        numbers = [_number(fields.get(name)) for name in ("pid", "documents", "total", "docs_per_s", "left_s")]
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    pid, documents, total, docs_per_s, left_s = numbers
    silent_s = max(0.0, _TTL_S - left_ms / 1000)
    whole = None if total is None else int(total)
    return RunState(
        **words,
        pid=int(pid or 0),
        documents=int(documents or 0),
        total=whole,
        docs_per_s=docs_per_s,
        left_s=left_s,
        silent_s=silent_s,
    )


def _number(value: Any) -> float | None:
    """A number that is one, and not so large that nobody could show it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 <= value < 1e15 else None
