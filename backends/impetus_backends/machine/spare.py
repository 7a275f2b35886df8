"""Whether this machine may be given work that nobody waits for: as whoever runs the engine says.

A fact about the process's machine, and so the process's own. Until it is told the answer is no.
"""

from __future__ import annotations

from threading import Event

_allowed = Event()


def say(allowed: bool) -> None:
    if allowed:
        _allowed.set()
    else:
        _allowed.clear()


def is_allowed() -> bool:
    return _allowed.is_set()
