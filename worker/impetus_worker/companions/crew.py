"""The threads beside a worker's loop, each with its own link to the server: who they are, how they start and end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from impetus_producer.contract import ROLE_QUEUES

from ..fleet.chores import REGISTRIES_INTERVAL_S, Registries, Schedule
from ..fleet.commands import Commands
from ..fleet.duties import FITNESS_INTERVAL_S, SWEEP_INTERVAL_S, Recovery, Renewal, ServerFitness, Strays, Sweep
from ..fleet.housekeeping import Duty, Housekeeping
from ..leases import doorbell
from ..leases.courier import Courier
from ..leases.doorbell import Doorbell
from ..leases.rq_endings import RqEndings
from .link import Link, Reachability

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from redis import Redis

    from ..fleet.routing import Routing
    from ..leases.claims import ClaimedJob, Claims
    from ..settings import WorkerSettings
    from .companion import Companion

_ANSWER_S = 10.0
_RENEW_S = 2.0
"""So often leases are renewed, and with them it is looked for wishes to cancel; more often where a lease is short."""


class Crew:
    """Made before the worker has a backend, started when it has. `tell` is how they all talk to the loop."""

    def __init__(
        self,
        settings: WorkerSettings,
        connect: Callable[[float], Redis],
        claims: Claims,
        tell: Callable[[object], None],
        calling: Callable[[str], AbstractContextManager[None]],
        server: str = "Redis",
    ) -> None:
        """`calling`: goes around a job's callbacks. `server`: as the log calls it."""
        self._settings = settings
        self._connect = connect
        self._claims = claims
        self._tell = tell
        self._queues = ROLE_QUEUES[settings.role]
        self._reachability = Reachability(server=server)
        self.courier = Courier(self.link("courier"), tell)
        self.rq_endings = RqEndings(self.link("rq-endings"), claims, settings.name, settings.allowed, tell, calling)
        self.bells = {
            queue: Doorbell(self.link(f"bell {queue}", doorbell.ANSWER_S), queue, tell) for queue in self._queues
        }
        self._commands = Commands(self.link("commands"), settings.name, tell)
        self._housekeeping: tuple[Housekeeping, ...] = ()

    def link(self, who: str, answer_s: float = _ANSWER_S) -> Link:
        return Link(who, lambda: self._connect(answer_s), self._reachability)

    def start(
        self, routing: Routing, held: Callable[[], list[ClaimedJob]], moves: Callable[[], bool]
    ) -> Sequence[Housekeeping]:
        """`held`: the runs whose leases are to be kept, while `moves` says that the loop turns; both are asked in a
        thread. Returns those that look for jobs to put on the queues.
        """
        lease_s = self._settings.lease_s
        renew_s = min(_RENEW_S, lease_s / 4)
        leases = [
            Duty("leases", Renewal(self._claims, held, moves, self._tell), renew_s),
            Duty("record", routing.look, self._settings.record_renew_s),
            Duty("recovery", Recovery(self._queues, renew_s), renew_s, judges_others=True),
        ]
        chores = [
            Duty("fitness", ServerFitness(), FITNESS_INTERVAL_S),
            Duty("schedule", Schedule(self._queues), 1.0),
            Duty("sweep", Sweep(self._queues), SWEEP_INTERVAL_S, judges_others=True),
            Duty("strays", Strays(self._queues), SWEEP_INTERVAL_S, judges_others=True),
            Duty("registries", Registries(self._queues), REGISTRIES_INTERVAL_S),
        ]
        self._housekeeping = (
            Housekeeping(
                "housekeeping", self.link("housekeeping", min(_ANSWER_S, lease_s / 4)), leases, self._tell, lease_s / 2
            ),
            # RQ's part of these has no bound of ours, so it holds up no lease.
            Housekeeping("chores", self.link("chores"), chores, self._tell, lease_s / 2),
        )
        for companion in self._everyone():
            companion.start()
        return self._housekeeping

    def hurry(self) -> None:
        """Has leases, record and recovery seen to at once."""
        for housekeeping in self._housekeeping[:1]:
            housekeeping.hurry()

    def stop(self, *, webhooks_s: float, patience_s: float) -> None:
        """Ends them all. Gives webhooks that wait so long to be sent, and what is under way so long to end."""
        for companion in self._everyone():
            companion.stop()
        self.rq_endings.send_webhooks(webhooks_s)
        deadline = time.monotonic() + patience_s
        for companion in (self.courier, self.rq_endings):
            companion.join(max(0.0, deadline - time.monotonic()))

    def _everyone(self) -> list[Companion]:
        return [self.courier, self.rq_endings, *self.bells.values(), self._commands, *self._housekeeping]
