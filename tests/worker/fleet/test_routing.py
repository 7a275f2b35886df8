"""Who serves the queues of embeddings: a Neural Engine's worker where one lives, another where none does."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from rq import SimpleWorker
from rq.cli.cli import main as rq_commands
from rq.command import send_shutdown_command
from rq.serializers import JSONSerializer

from impetus_producer import Producer
from impetus_producer.contract import EMBED_FUNCTION, STANDBY_QUEUE, WORKER_RECORD_KEY, ServedModel, WorkerRecord
from impetus_producer.watching.fleet import read_fleet
from impetus_worker.fleet.routing import Routing, queues_for
from impetus_worker.inbox import Rerouted, Shared
from impetus_worker.leases.portions import Share
from impetus_worker.loop.server_side import IDLE_WAIT_S
from impetus_worker.settings import RECORD_RENEW_S, RECORD_TTL_S
from tests.backends.machine.machines import machine_file
from tests.patience import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from tests.worker.conftest import Fleet, RunningWorker

BOTH = ("embedding", "embedding-bulk")
STANDBY = (STANDBY_QUEUE,)
MODEL = "some/model"

# -- the decision ----------------------------------------------------------------------------------------------------

GPU = WorkerRecord(
    name="gpu", role="embedding", model=MODEL, aliases=(MODEL, "model"), backend="mlx", device="gpu", prefer="energy"
)
ANE = GPU.model_copy(update={"name": "ane", "backend": "coreml", "device": "ane", "neural_engine": True})


@pytest.mark.parametrize(
    ("own", "others", "queues"),
    [
        (GPU, [], BOTH),
        (GPU, [ANE], STANDBY),
        (GPU, [GPU], BOTH),
        (ANE, [ANE, GPU], BOTH),
        (GPU.model_copy(update={"prefer": "speed"}), [ANE], BOTH),
        (GPU, [ANE.model_copy(update={"serving": False})], BOTH),
        (GPU, [ANE.model_copy(update={"serving": False}), ANE], STANDBY),
        (GPU, [ANE.model_copy(update={"model": "another", "aliases": ("another",)})], BOTH),
        (GPU, [ANE.model_copy(update={"model": "folder", "aliases": ("folder", MODEL)})], STANDBY),
        (GPU.model_copy(update={"role": "generation"}), [ANE], ("generation", "generation-bulk")),
        (GPU, [ANE.model_copy(update={"role": "generation"})], BOTH),
        # It serves one model more, which would be nobody's.
        (GPU.model_copy(update={"more_models": (ServedModel(name="large"),)}), [ANE], BOTH),
        (
            GPU.model_copy(update={"more_models": (ServedModel(name="large"),)}),
            [ANE.model_copy(update={"aliases": (*ANE.aliases, "large")})],
            STANDBY,
        ),
    ],
)
def test_who_serves_beside_whom(own: WorkerRecord, others: list[WorkerRecord], queues: tuple[str, ...]) -> None:
    assert queues_for(own, others) == queues


def test_at_the_default_pace_queues_are_given_up_within_5_s_and_taken_over_within_15_s() -> None:
    # A look every so often; the loop hears of a change at once, and looks by itself at the latest when it wakes.
    assert RECORD_RENEW_S + IDLE_WAIT_S < 5
    assert RECORD_TTL_S + RECORD_RENEW_S + IDLE_WAIT_S < 15
    assert RECORD_TTL_S > 3 * RECORD_RENEW_S  # two looks may fail


def place(
    record: WorkerRecord,
    told: list[object] | None = None,
    is_serving: Callable[[], bool] = lambda: True,
    clock: Callable[[], float] = time.monotonic,
) -> Routing:
    told = [] if told is None else told
    return Routing(
        record,
        is_serving=is_serving,
        engine_deaths=lambda: 0,
        tell=told.append,
        clock=clock,
    )


def test_a_record_that_cannot_be_read_blocks_nobody(connection: Redis) -> None:
    for name, content in (("a", "{"), ("b", "[1]"), ("c", '{"role": "embedding"}')):
        connection.sadd("rq:workers", f"rq:worker:{name}")
        connection.set(WORKER_RECORD_KEY + name, content)
    connection.sadd("rq:workers", "rq:worker:d")
    connection.hset(f"{WORKER_RECORD_KEY}d", "not", "a string")
    own = place(GPU)
    own.look(connection)
    assert own.queues == BOTH


def test_a_record_of_a_later_version_is_read(connection: Redis) -> None:
    connection.sadd("rq:workers", "rq:worker:ane")
    connection.sadd("impetus:workers", "ane")
    connection.set(f"{WORKER_RECORD_KEY}ane", ANE.model_dump_json()[:-1] + ', "colour": "blue"}', ex=10)
    told: list[object] = []
    own = place(GPU, told)
    own.look(connection)
    own.look(connection)
    assert own.queues == STANDBY
    assert told == [Shared((Share(0.5, 0.5), Share(0.5, 0.5))), Rerouted(STANDBY)]
    assert connection.hget("rq:worker:gpu", "queues") == STANDBY_QUEUE.encode()


def test_a_record_without_an_end_or_of_a_worker_that_rq_does_not_know_counts_for_nothing(connection: Redis) -> None:
    connection.sadd("rq:workers", "rq:worker:ane")
    connection.sadd("impetus:workers", "ane")
    connection.set(f"{WORKER_RECORD_KEY}ane", ANE.model_dump_json())
    connection.set(f"{WORKER_RECORD_KEY}ane2", ANE.model_copy(update={"name": "ane2"}).model_dump_json(), ex=10)
    own = place(GPU)
    own.look(connection)
    assert own.queues == BOTH


class Standing:
    """A worker that stands by for a Neural Engine, which says every so often that it serves, by a clock of its own."""

    def __init__(self, connection: Redis) -> None:
        self.now = 1000.0
        self._connection = connection
        self._ane, self._gpu = place(ANE), place(GPU, clock=lambda: self.now)

    def after(self, seconds: float) -> tuple[str, ...]:
        """What it serves then."""
        self.now += seconds
        self._ane.look(self._connection)
        self._gpu.look(self._connection)
        return self._gpu.queues


@pytest.mark.parametrize("queue", BOTH)
def test_standing_by_ends_when_jobs_wait_and_nobody_takes_any(
    connection: Redis, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    standing = Standing(connection)
    assert standing.after(0) == STANDBY
    connection.rpush(f"rq:queue:{queue}", "one", "two")
    assert [standing.after(seconds) for seconds in (2, 29)] == [STANDBY, STANDBY]
    assert standing.after(2) == BOTH
    assert "no worker took any, though one with a Neural Engine says that it serves" in caplog.text
    assert standing.after(599) == BOTH, "it serves for a while, whoever takes the jobs"
    again = [standing.after(seconds) for seconds in (2, 2, 29, 2)]
    assert again == [STANDBY, STANDBY, STANDBY, BOTH], "and looks anew"


@pytest.mark.parametrize(
    "change", [lambda c: c.lpop("rq:queue:embedding"), lambda c: c.lpop("rq:queue:embedding-bulk")]
)
def test_whoever_stands_by_goes_on_while_a_queue_moves(connection: Redis, change: Callable[[Redis], object]) -> None:
    standing = Standing(connection)
    for queue in BOTH:
        connection.rpush(f"rq:queue:{queue}", *range(10))
    for _ in range(8):
        assert standing.after(20) == STANDBY
        change(connection)


def test_whoever_stands_by_goes_on_while_nothing_waits_or_all_are_suspended(connection: Redis) -> None:
    standing = Standing(connection)
    connection.set("rq:queue:embedding-bulk", "of another type")
    assert [standing.after(20) for _ in range(5)] == [STANDBY] * 5
    connection.rpush("rq:queue:embedding", "one")
    connection.set("rq:suspended", 1)
    assert [standing.after(20) for _ in range(5)] == [STANDBY] * 5
    connection.delete("rq:suspended")
    assert [standing.after(20) for _ in range(3)] == [STANDBY, STANDBY, BOTH]


def test_the_workers_own_list_is_read_in_parts_and_forgets_who_is_gone(connection: Redis) -> None:
    connection.sadd("impetus:workers", *(f"gone-{number}" for number in range(10_000)))
    ane, gpu = place(ANE), place(GPU)
    ane.look(connection)
    assert connection.scard("impetus:workers") > 6000, "a thousand are looked at at a time"
    for _ in range(12):
        gpu.look(connection)
    assert connection.smembers("impetus:workers") == {b"ane", b"gpu"}
    gpu.look(connection)
    assert gpu.queues == STANDBY


def test_a_record_runs_out_unless_it_is_renewed(connection: Redis) -> None:
    place(ANE).look(connection)
    assert 0 < connection.pttl(f"{WORKER_RECORD_KEY}ane") <= RECORD_TTL_S * 1000


def test_who_left_says_no_more(connection: Redis) -> None:
    ane, gpu = place(ANE), place(GPU)
    seen = []
    for act in (ane.look, ane.leave, ane.look):  # its thread may be about to look as it leaves
        act(connection)
        gpu.look(connection)
        seen.append(gpu.queues)
    assert seen == [STANDBY, BOTH, BOTH]
    assert not connection.exists(f"{WORKER_RECORD_KEY}ane")
    assert connection.smembers("rq:workers") == {b"rq:worker:gpu"}
    assert 0 < connection.ttl("rq:worker:ane") <= 60


def test_who_stands_down_is_in_rqs_books_until_it_ends_and_in_nobodys_way(connection: Redis) -> None:
    ane, gpu = place(ANE), place(GPU)
    ane.look(connection)
    ane.stand_down()
    ane.look(connection)
    gpu.look(connection)
    assert gpu.queues == BOTH
    assert connection.smembers("rq:workers") == {b"rq:worker:ane", b"rq:worker:gpu"}
    assert connection.ttl("rq:worker:ane") > 30


def test_a_worker_is_in_rqs_books_as_if_rq_had_registered_it(connection: Redis) -> None:
    stock = SimpleWorker(["embedding"], name="stock", connection=connection, serializer=JSONSerializer)
    stock.register_birth()
    stock.set_state("idle")
    place(GPU).look(connection)
    assert set(connection.hgetall("rq:worker:gpu")) == set(connection.hgetall("rq:worker:stock"))
    (ours,) = [worker for worker in SimpleWorker.all(connection=connection) if worker.name == "gpu"]
    assert ours.queue_names() == list(BOTH)
    assert ours.get_state() == "idle"
    seconds: Any = connection.time()
    assert ours.last_heartbeat is not None
    assert abs(ours.last_heartbeat.timestamp() - seconds[0]) < 5


def test_who_arrives_changes_or_leaves_rings_at_the_others_and_nobody_else_does(connection: Redis) -> None:
    bell = connection.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    bell.subscribe("rq:pubsub:gpu")
    bell.get_message(timeout=5)

    def rings() -> int:
        connection.publish("rq:pubsub:gpu", "end")
        heard = 0
        while (message := bell.get_message(timeout=5)) is None or message["data"] != b"end":
            heard += message is not None
        return heard

    serving = True
    place(GPU).look(connection)
    ane = place(ANE, is_serving=lambda: serving)
    ane.look(connection)
    assert rings() == 1
    ane.look(connection)
    assert rings() == 0
    serving = False
    ane.look(connection)
    assert rings() == 1
    ane.leave(connection)
    assert rings() == 1
    bell.close()


# -- real workers, whose hardware is that of a file ------------------------------------------------------------------

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
