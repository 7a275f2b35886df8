"""Faults of machines: processes that are killed, stand still, sleep or live at another time."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from scripts.proofs.faults.fault import Fault
from tests.worker.faults.breakable import signal_to

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.proofs.faults.scene import Scene

_CLOCKS_AHEAD_S = (180.0, -180.0, 172_800.0, -172_800.0)
_SLEEPS = 3


def _one(scene: Scene, *, engines: bool = False) -> int | None:
    """A worker process of a machine that is awake, or an engine process."""
    if (machine := scene.a_machine()) is None:
        return None
    pids = machine.workers.engine_pids() if engines else machine.workers.worker_pids()
    return scene.random.choice(pids) if pids else None


def _kill_worker(scene: Scene) -> bool:
    return (pid := _one(scene)) is not None and signal_to(pid, signal.SIGKILL)


def _kill_engine(scene: Scene) -> bool:
    return (pid := _one(scene, engines=True)) is not None and signal_to(pid, signal.SIGKILL)


def _stop_for_a_while(scene: Scene, pid: int | None, for_s: float) -> bool:
    return pid is not None and scene.spell(
        f"process {pid}", for_s, lambda: signal_to(pid, signal.SIGSTOP), lambda: signal_to(pid, signal.SIGCONT)
    )


def _freeze_worker(scene: Scene) -> bool:
    return _stop_for_a_while(scene, _one(scene), scene.lease_s * scene.random.uniform(1.1, 2))


def _stop_engine(scene: Scene) -> bool:
    return _stop_for_a_while(scene, _one(scene, engines=True), scene.lease_s * scene.random.uniform(1.5, 3))


def _kill_supervisor(scene: Scene) -> bool:
    if (machine := scene.a_machine()) is None:
        return False

    def begin() -> None:
        scene.note_processes()
        machine.workers.kill()

    return scene.spell(machine.name, scene.random.uniform(0, 2), begin, lambda: scene.replace(machine))


def _sleep(scene: Scene) -> bool:
    machine = scene.a_machine()
    if machine is None or not scene.hold(machine.name):
        return False
    sleeps = _SLEEPS

    def fall_asleep() -> None:
        nonlocal sleeps
        if sleeps == 0 or scene.over:
            scene.release(machine.name)
            return
        sleeps -= 1
        scene.note_processes()
        scene.sleep(machine)
        scene.later(scene.lease_s * scene.random.uniform(1.2, 1.6), wake)

    def wake() -> None:
        scene.awake(machine)
        scene.later(scene.random.uniform(0.2, 1.5), fall_asleep)

    fall_asleep()
    return True


def _retire(scene: Scene, number: int, then: Callable[[Scene], float]) -> bool:
    """Ends the workers of a machine; the next have a clock that is so far ahead as `then` says."""
    machine = scene.a_machine()
    if machine is None or not scene.hold(machine.name):
        return False

    def replace() -> None:
        scene.replace(machine, then(scene))
        scene.release(machine.name)

    scene.retire(machine, number, replace)
    return True


def _hang_up(scene: Scene) -> bool:
    return _retire(scene, signal.SIGHUP, lambda scene: 0.0)


def _other_clock(scene: Scene) -> bool:
    return _retire(scene, signal.SIGTERM, lambda scene: scene.random.choice(_CLOCKS_AHEAD_S))


FAULTS = (
    Fault("worker-killed", "kill -9 of a worker", _kill_worker, 3),
    Fault("engine-killed", "kill -9 of an engine process", _kill_engine, 3),
    Fault("supervisor-killed", "kill -9 of a supervisor; another is started", _kill_supervisor, 1),
    Fault("worker-frozen", "SIGSTOP of a worker for longer than its lease", _freeze_worker),
    Fault("engine-stopped", "SIGSTOP of an engine for up to three leases", _stop_engine),
    Fault("sleep", "a machine's whole process tree stopped for longer than a lease, three times in a row", _sleep),
    Fault("sighup", "the terminal closes: SIGHUP to a supervisor; another is started", _hang_up, 1),
    Fault("clocks", "a machine's workers start anew with a wall clock 3 minutes or 2 days wrong", _other_clock),
)
