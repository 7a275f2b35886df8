"""An engine for generations that tells what each has used of the chip's energy.

Of each step its joules are parted evenly among the generations that were in it: who reads a long prompt is not told
from who decodes beside it. What is used between steps is nobody's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..machine.energy import Reading
from ..protocol import Deferred, Generated, Rejected, Started

if TYPE_CHECKING:
    from ..machine.energy import Meter
    from ..protocol import Engine, EngineInfo, Event, Work


class MeteredEngine:
    """`protocol.Engine` around another. A meter that can no longer tell measures nothing from then on."""

    def __init__(self, engine: Engine, meter: Meter) -> None:
        self._engine, self._reading = engine, Reading(meter)
        self._used_j: dict[int, float | None] = {}
        """By work that has begun; None where a step of it was not measured."""
        self._called_off: dict[int, float | None] = {}
        """The same of what is in no further step, and is told by the next."""

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    def admit(self, work: Work) -> None:
        self._engine.admit(work)

    def cancel(self, work_id: int) -> None:
        if work_id in self._used_j:
            self._called_off[work_id] = self._used_j.pop(work_id)
        self._engine.cancel(work_id)

    def pending(self) -> int:
        return self._engine.pending()

    def step(self) -> list[Event]:
        before = self._reading.joules()
        events = self._engine.step()
        now = self._reading.joules()
        for event in events:
            if isinstance(event, Started):
                self._used_j.setdefault(event.id, 0.0)
        if self._used_j:
            self._spend(None if before is None or now is None else (now - before) / len(self._used_j))
        told = [self._told(event) for event in events]
        self._called_off.clear()
        return told

    def _spend(self, joules: float | None) -> None:
        """On each that has begun."""
        for work_id, used in self._used_j.items():
            self._used_j[work_id] = None if used is None or joules is None else used + joules

    def _told(self, event: Event) -> Event:
        used_j = self._called_off.get(event.id, self._used_j.get(event.id))
        if isinstance(event, Generated | Rejected | Deferred):
            self._used_j.pop(event.id, None)
        return replace(event, energy_j=used_j) if isinstance(event, Generated) else event

    def close(self) -> None:
        self._used_j.clear()
        self._engine.close()
