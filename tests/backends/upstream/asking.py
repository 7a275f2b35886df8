"""Requests to a scripted upstream, and what an engine makes of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from impetus_backends.protocol import (
    Event,
    Generated,
    GenerationWork,
    Rejected,
)
from impetus_backends.upstream.exchange import Patience

from ..scripted_server import LIMIT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from impetus_backends.upstream.engine import UpstreamEngine

HELLO = ({"role": "user", "content": "Hello"},)
IMPATIENT = Patience(connect_s=5.0, away_s=0.0, first_s=0.3, between_s=0.3)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def work(work_id: int = 1, *, messages: Any = HELLO, prompt: str | None = None, **fields: Any) -> GenerationWork:
    return GenerationWork(work_id, prompt, None if prompt is not None else messages, **fields)


def events_until(engine: UpstreamEngine, enough: Callable[[list[Event]], object]) -> list[Event]:
    events: list[Event] = []
    deadline = time.monotonic() + LIMIT_S
    while not enough(events):
        assert time.monotonic() < deadline, events
        events += engine.step()
    return events


def run(engine: UpstreamEngine, *works: GenerationWork) -> list[Event]:
    for each in works:
        engine.admit(each)
    return events_until(engine, lambda events: engine.pending() == 0)


def ended(events: list[Event]) -> Generated:
    assert isinstance(events[-1], Generated), events
    return events[-1]


def refused(events: list[Event]) -> Rejected:
    assert isinstance(events[-1], Rejected), events
    return events[-1]
