"""What there is to break: two servers of which one serves, machines with workers, and the networks between them.

Faults act on a scene and come to an end by themselves: each holds what it breaks for a while, and nobody else breaks
that meanwhile. One thread acts; the machines' processes, the proxies and the traffic are others.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.worker.faults.breakable import Server, Workers, is_ours, resident_mb, signal_to, wake
from tests.worker.faults.proxy import Proxy

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    from scripts.proofs.faults.history import History
    from scripts.proofs.traffic import Traffic

OBSERVER, PRODUCER = "observer", "producer"
"""The networks of those who watch, which no fault touches, and of the traffic."""
_GONE_WITHIN_S = 45.0


@dataclass(order=True)
class _Due:
    at: float
    number: int
    action: Callable[[], None] = field(compare=False)


@dataclass
class Machine:
    """A supervisor and all below it."""

    name: str
    log: Path
    workers: Workers
    asleep: list[int] = field(default_factory=list)


class Scene:
    """`start` before anything, and `end` in any case."""

    def __init__(self, folder: Path, random: random.Random, history: History, *, machines: int, lease_s: int) -> None:
        self.folder = folder
        self.random = random
        self.history = history
        self.lease_s = lease_s
        self.servers = [Server(folder / "server-0"), Server(folder / "server-1")]
        """The first is the one that serves."""
        self.machines: list[Machine] = []
        self.networks = {
            name: Proxy(self.servers[0].port)
            for name in (OBSERVER, PRODUCER, *(f"machine {number}" for number in range(machines)))
        }
        self.alone = False
        """Whether the fault is the only kind of this run."""
        self.over = False
        """No fault begins any more."""
        self.server_spells: list[tuple[float, float]] = []
        """When the server itself was broken, on the monotonic clock."""
        self.evicted: set[str] = set()
        self.complaints: list[tuple[str, str]] = []
        """(what, which) that went wrong in the middle of it."""
        self._traffic: Traffic | None = None
        self._due: list[_Due] = []
        self._held: dict[str, float] = {}
        self._pids: set[int] = set()
        self._memory: dict[int, list[float]] = {}
        self._standby_runs = False

    # -- from its beginning to its end -------------------------------------------------------------------------------

    def start(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self.servers[0].start()
        for name in self.networks:
            if name.startswith("machine"):
                log = self.folder / f"{name.replace(' ', '-')}.log"
                self.machines.append(Machine(name, log, self._new_workers(name, log)))

    def _new_workers(self, name: str, log: Path, clock_ahead_s: float = 0.0) -> Workers:
        return Workers(
            self.networks[name].url,
            log,
            clock_ahead_s=clock_ahead_s,
            lease_s=self.lease_s,
            max_batch_texts=64,
            simulated_a_ms=5.0,
            allow_callbacks=("tests.worker.faults.fault_callbacks.take_two_seconds",),
        )

    def settle(self) -> None:
        """Ends every fault that lasts, now."""
        self.over = True
        while self._due:
            heapq.heappop(self._due).action()
            time.sleep(0.01)

    def stop_machines(self) -> None:
        """Warm. What does not go well is among the complaints afterwards."""
        self.note_processes()
        for machine in self.machines:
            if status := machine.workers.stop():
                self.complain("a supervisor did not stop well", f"{machine.name}: exit status {status}")
        deadline = time.monotonic() + 15
        while (left := [pid for pid in self._pids if is_ours(pid)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        if left:
            self.complain("processes left behind", str(left))

    def end(self) -> None:
        """Leaves nothing running."""
        self.note_processes()
        for machine in self.machines:
            machine.workers.end()
        for pid in self._pids:
            signal_to(pid, 9)
        for proxy in self.networks.values():
            proxy.close()
        for server in self.servers:
            server.kill()

    # -- for faults --------------------------------------------------------------------------------------------------

    @property
    def server(self) -> Server:
        return self.servers[0]

    @property
    def traffic(self) -> Traffic:
        assert self._traffic is not None
        return self._traffic

    def later(self, in_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, _Due(time.monotonic() + in_s, self.random.getrandbits(40), action))

    def run_due(self) -> bool:
        """Does the next thing that is due, if any is."""
        if self._due and self._due[0].at <= time.monotonic():
            heapq.heappop(self._due).action()
            return True
        return False

    def hold(self, what: str) -> bool:
        """Takes a part of the scene to break it; False where it is broken already. `release` when it is whole."""
        if what in self._held:
            return False
        self._held[what] = time.monotonic()
        return True

    def release(self, what: str) -> None:
        since = self._held.pop(what)
        if what == "server":
            self.server_spells.append((since, time.monotonic()))

    def spell(self, what: str, for_s: float, begin: Callable[[], Any], end: Callable[[], Any]) -> bool:
        """A fault of `what` that lasts: whether it began."""
        if not self.hold(what):
            return False
        begin()

        def over() -> None:
            end()
            self.release(what)

        self.later(for_s, over)
        return True

    def a_machine(self) -> Machine | None:
        """One that is awake and runs."""
        able = [each for each in self.machines if each.name not in self._held and each.workers.process.poll() is None]
        return self.random.choice(able) if able else None

    def a_network(self) -> tuple[str, Proxy]:
        """That of a machine, or of the producer."""
        name = self.random.choice([name for name in self.networks if name != OBSERVER])
        return name, self.networks[name]

    def replace(self, machine: Machine, clock_ahead_s: float = 0.0) -> None:
        """New workers on a machine whose others have ended."""
        machine.workers = self._new_workers(machine.name, machine.log, clock_ahead_s)

    def retire(self, machine: Machine, number: int, then: Callable[[], None]) -> None:
        """Signals the supervisor and waits, without waiting here, until all below it has ended; then `then`."""
        self.note_processes()
        tree, deadline = machine.workers.tree(), time.monotonic() + _GONE_WITHIN_S
        signal_to(machine.workers.process.pid, number)

        def look() -> None:
            if machine.workers.process.poll() is None and time.monotonic() < deadline:
                self.later(0.2, look)
                return
            # One that has started nothing yet may not have come to hear signals either.
            status, well = machine.workers.end(), (0,) if len(tree) > 1 else (0, -number)
            if status not in well:
                self.complain("a supervisor did not stop well", f"{machine.name}: signal {number}, status {status}")
            for pid in tree:
                signal_to(pid, 9)
            then()

        self.later(0.2, look)

    def sleep(self, machine: Machine) -> None:
        machine.asleep = machine.workers.sleep()

    def awake(self, machine: Machine) -> None:
        wake(machine.asleep)
        machine.asleep = []

    def fail_over(self) -> bool:
        """The other server serves from now on, behind the same addresses."""
        old, new = self.servers
        if not self._standby_runs:
            new.start()
            self._standby_runs = True
        if not old.hand_over_to(new):
            self.complain("the servers could not be exchanged", "see their logs")
            return False
        for proxy in self.networks.values():
            proxy.lead_to(new.port)
        self.servers.reverse()
        return True

    def complain(self, what: str, which: str) -> None:
        self.complaints.append((what, which))

    # -- looking -----------------------------------------------------------------------------------------------------

    def note_processes(self) -> None:
        for machine in self.machines:
            if machine.workers.process.poll() is None:
                self._pids.update(machine.workers.tree())

    def note_memory(self) -> None:
        for machine in self.machines:
            for pid in machine.workers.tree()[1:]:
                if (size := resident_mb(pid)) is not None:
                    self._memory.setdefault(pid, []).append(size)

    @property
    def memory_mb(self) -> dict[int, list[float]]:
        """Of workers and engines, by process, one sample after the other."""
        return self._memory
