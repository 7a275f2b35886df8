"""Who serves the queues of embeddings: a Neural Engine's worker where one lives, another where none does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from rq import SimpleWorker
from rq.serializers import JSONSerializer

from impetus_producer.contract import STANDBY_QUEUE, WORKER_RECORD_KEY, ServedModel, WorkerRecord
from impetus_worker.fleet.routing import Routing, queues_for
from impetus_worker.inbox import Rerouted, Shared
from impetus_worker.leases.portions import Share
from impetus_worker.loop.server_side import IDLE_WAIT_S
from impetus_worker.settings import RECORD_RENEW_S, RECORD_TTL_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis


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
