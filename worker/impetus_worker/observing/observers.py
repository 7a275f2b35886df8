"""All that look on at a worker, as one: which there are, the environment says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .observer import Observer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from impetus_backends.protocol import Event, Work

    from ..leases.claims import ClaimedJob
    from ..leases.outcomes import Outcome


class Observers(Observer):
    """Several as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._all = observers

    def took(self, jobs: Iterable[ClaimedJob], now: float) -> None:
        for each in self._all:
            each.took(jobs, now)

    def ended(self, outcome: Outcome, now: float) -> None:
        for each in self._all:
            each.ended(outcome, now)

    def admitted(self, work: Work) -> None:
        for each in self._all:
            each.admitted(work)

    def heard(self, event: Event) -> None:
        for each in self._all:
            each.heard(event)

    def lost_lease(self, job: ClaimedJob) -> None:
        for each in self._all:
            each.lost_lease(job)

    def engine_died(self) -> None:
        for each in self._all:
            each.engine_died()

    def look(self, now: float, begun: Callable[[], Collection[str]], held: int) -> None:
        for each in self._all:
            each.look(now, begun, held)

    def close(self) -> None:
        for each in self._all:
            each.close()


def open_observers(role: str, worker: str) -> Observer:
    """Those that the environment asks for: Prometheus's by the folder that `observing.server` makes, OpenTelemetry's by
    its own variables.
    """
    found: list[Observer] = []
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        from .metrics import Metrics

        found.append(Metrics(role))
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        from .traces import Traces

        found.append(Traces(role, worker))
    return Observers(found)
