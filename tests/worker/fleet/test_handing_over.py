"""Real workers, whose hardware is that of a file, hand over the queues of embeddings, and take them over."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from rq.cli.cli import main as rq_commands
from rq.command import send_shutdown_command

from impetus_producer import Producer
from impetus_producer.contract import EMBED_FUNCTION, STANDBY_QUEUE, WORKER_RECORD_KEY
from impetus_producer.watching.fleet import read_fleet
from tests.backends.machine.machines import machine_file
from tests.patience import eventually

if TYPE_CHECKING:
    from tests.worker.conftest import Fleet, RunningWorker

BOTH = ("embedding", "embedding-bulk")
STANDBY = (STANDBY_QUEUE,)


LOOKS_OFTEN = ("--record-ttl-s", "600", "--record-renew-s", "0.25", "--prefer", "energy")
"""But no record runs out by itself, however busy the machine is."""


def start(fleet: Fleet, machine: str, *options: str, wait: bool = True) -> RunningWorker:
    return fleet.start("--hardware", str(machine_file(machine)), *LOOKS_OFTEN, *options, wait=wait)


def let_its_record_run_out(fleet: Fleet, chip: str) -> None:
    (name,) = [worker.name for worker in read_fleet(fleet.connection).workers if worker.machine == chip]
    fleet.connection.pexpire(f"{WORKER_RECORD_KEY}{name}", 1)


def serving(fleet: Fleet) -> dict[str, tuple[str, ...]]:
    """The queues of each live worker, by its chip: as Redis has them."""
    return {worker.machine: worker.queues for worker in read_fleet(fleet.connection).workers if worker.machine}


def rq_info(fleet: Fleet) -> str:
    """What an operator sees."""
    said = CliRunner().invoke(rq_commands, ["info", "--url", fleet.url, "--raw"])
    assert said.exit_code == 0, said.output
    return said.output


def listed(info: str, fleet: Fleet) -> dict[str, str]:
    """From `rq info`: the queues of each worker, by its chip."""
    chips = {worker.name: worker.machine for worker in read_fleet(fleet.connection).workers}
    lines = [line.split() for line in info.splitlines() if line.startswith("worker ")]
    return {chips[words[1]]: " ".join(words[6:]).split(".")[0] for words in lines}


def kill_all(worker: RunningWorker, pid: int) -> None:
    """As when the machine loses its power: worker and supervisor, and nobody says goodbye."""
    worker.process.send_signal(signal.SIGSTOP)  # it would start another
    os.kill(pid, signal.SIGKILL)
    worker.process.kill()
    worker.process.wait()


def pids_of(fleet: Fleet, chip: str) -> list[int]:
    names = [worker.name for worker in read_fleet(fleet.connection).workers if worker.machine == chip]
    pids: list[Any] = [fleet.connection.hget(f"rq:worker:{name}", "pid") for name in names]
    return [int(pid) for pid in pids if pid]


@pytest.mark.system
def test_a_gpu_gives_way_to_a_neural_engine_and_takes_over_however_that_ends_and_no_job_is_lost(fleet: Fleet) -> None:
    producer = Producer(connection=fleet.connection)
    backlog = [producer.embed(str(number), bulk=True) for number in range(100)]

    def embed_on() -> str:
        """Where a text is embedded now, beside ten for which nobody waits."""
        backlog.extend(producer.embed(str(number), bulk=True) for number in range(10))
        return producer.embed("hello").result(timeout_s=20).provenance.device

    start(fleet, "m1")
    assert serving(fleet) == {"Apple M1": BOTH}
    assert embed_on() == "simulated gpu"
    assert listed(rq_info(fleet), fleet) == {"Apple M1": "embedding, embedding-bulk"}

    # One appears: rung at, the other gives way at once.
    ane = start(fleet, "m4")
    eventually(lambda: serving(fleet) == {"Apple M1": STANDBY, "Apple M4": BOTH})
    assert embed_on() == "simulated ane"
    assert listed(rq_info(fleet), fleet) == {"Apple M1": STANDBY_QUEUE, "Apple M4": "embedding, embedding-bulk"}

    # It leaves politely: the other takes over at once, without waiting for anything to run out.
    assert ane.stop() == 0
    eventually(lambda: serving(fleet) == {"Apple M1": BOTH})
    assert embed_on() == "simulated gpu"
    info = rq_info(fleet)
    assert listed(info, fleet) == {"Apple M1": "embedding, embedding-bulk"}
    assert STANDBY_QUEUE not in info

    # It freezes, and comes back: a worker that says nothing serves nothing.
    ane = start(fleet, "m4")
    eventually(lambda: serving(fleet)["Apple M1"] == STANDBY)
    (pid,) = pids_of(fleet, "Apple M4")
    os.kill(pid, signal.SIGSTOP)
    let_its_record_run_out(fleet, "Apple M4")
    try:
        eventually(lambda: serving(fleet) == {"Apple M1": BOTH})
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: serving(fleet) == {"Apple M1": STANDBY, "Apple M4": BOTH})
    assert embed_on() == "simulated ane"

    # It dies: the other misses it when its record has run out.
    eventually(lambda: fleet.connection.zcard("rq:finished:embedding-bulk") == len(backlog))  # or leases must run out
    kill_all(ane, pid)
    assert serving(fleet)["Apple M1"] == STANDBY, "nobody can have known so soon"
    let_its_record_run_out(fleet, "Apple M4")
    eventually(lambda: serving(fleet) == {"Apple M1": BOTH})
    assert embed_on() == "simulated gpu"

    for handle in backlog:
        handle.result(timeout_s=30)
    assert fleet.connection.zcard("rq:finished:embedding-bulk") == len(backlog) == 150
    assert fleet.connection.zcard("rq:wip:embedding-bulk") == 0


@pytest.mark.system
def test_who_stands_by_does_its_chores_answers_commands_and_knows_its_place_from_the_start(fleet: Fleet) -> None:
    start(fleet, "m1")  # the first has the scheduler's locks
    start(fleet, "m4")
    eventually(lambda: serving(fleet) == {"Apple M1": STANDBY, "Apple M4": BOTH})
    job = fleet.queue().enqueue_in(timedelta(0), EMBED_FUNCTION, {"input": "later"})
    assert fleet.await_status(job, "finished") == "finished"
    result: Any = fleet.job(job.id).return_value()
    assert result["provenance"]["device"] == "simulated ane"

    # One that comes later listens to nothing that is another's, not for a moment.
    later = start(fleet, "m2-pro")
    assert serving(fleet)["Apple M2 Pro"] == STANDBY
    assert "serves embedding, embedding-bulk" not in later.log
    (state,) = [worker for worker in read_fleet(fleet.connection).workers if worker.machine == "Apple M2 Pro"]
    assert state.device == "simulated gpu (simulated)"

    # It is told to stop as any worker of RQ's is, and its supervisor starts another in its place.
    send_shutdown_command(fleet.connection, state.name)
    eventually(lambda: state.name not in {worker.name for worker in read_fleet(fleet.connection).workers})
    eventually(lambda: serving(fleet).get("Apple M2 Pro") == STANDBY)
    assert later.stop() == 0
    assert serving(fleet) == {"Apple M1": STANDBY, "Apple M4": BOTH}

    # A Neural Engine's worker that dies alone is started again, and its predecessor's record is in nobody's way.
    (first,) = pids_of(fleet, "Apple M4")
    os.kill(first, signal.SIGKILL)
    eventually(lambda: pids_of(fleet, "Apple M4") not in ([], [first]))
    eventually(lambda: serving(fleet) == {"Apple M1": STANDBY, "Apple M4": BOTH})
    # The supervisor's report of the death takes it away, long before its time is over.
    eventually(lambda: len(list(fleet.connection.scan_iter(f"{WORKER_RECORD_KEY}*"))) == 2)
