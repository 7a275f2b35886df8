"""What share of its queues is a worker's, by what it and the others measured."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

import pytest

from impetus_producer import Producer
from impetus_producer.contract import MeasuredCost, WorkerRecord
from impetus_worker.fleet.routing import Routing, peers
from impetus_worker.fleet.shares import is_news, shares
from impetus_worker.inbox import Shared
from impetus_worker.leases.portions import ALONE, Share

if TYPE_CHECKING:
    from redis import Redis

    from ..conftest import Fleet

ANE = MeasuredCost(call_s=0.002, token_s=20e-6, batch_tokens=4096)
GPU = MeasuredCost(call_s=0.020, token_s=5e-6, batch_tokens=4096)


def record(
    name: str, cost: MeasuredCost | None, role: Literal["embedding", "generation"] = "embedding"
) -> WorkerRecord:
    return WorkerRecord(
        name=name, role=role, model="m", backend="b", device=name, neural_engine=name == "ane", cost=cost
    )


def test_one_may_be_first_for_short_texts_and_another_for_bulk() -> None:
    ane, gpu = record("ane", ANE), record("gpu", GPU)
    urgent, bulk = shares(ane, [gpu])
    short = (1 / 0.00264, 1 / 0.02016)
    long = (4096 / 0.08392, 4096 / 0.04048)
    assert (urgent.own, urgent.best) == pytest.approx((short[0] / sum(short), short[1] / sum(short)))
    assert (bulk.own, bulk.best) == pytest.approx((long[0] / sum(long), long[1] / sum(long)))


def test_a_worker_alone_and_one_that_generates_share_with_nobody() -> None:
    assert shares(record("gpu", GPU), []) == (ALONE, ALONE)
    assert shares(record("a", None, "generation"), [record("b", None, "generation")]) == (ALONE, ALONE)


def test_who_measured_nothing_counts_as_one_like_the_others() -> None:
    assert shares(record("new", None), [record("gpu", GPU)])[1] == Share(0.5, 0.5)
    assert shares(record("gpu", GPU), [record("new", None)])[1] == Share(0.5, 0.5)
    assert shares(record("one", None), [record("two", None)])[1] == Share(0.5, 0.5)


def test_costs_that_nobody_can_have_are_counted_with_all_the_same() -> None:
    free = MeasuredCost(call_s=0, token_s=0, batch_tokens=1)
    slow = MeasuredCost(call_s=1e308, token_s=1e308, batch_tokens=2**31 - 1)
    for own in (free, slow):
        for share in shares(record("own", own), [record("free", free), record("slow", slow)]):
            assert 0 <= share.own <= 1
            assert 0 <= share.best <= 1


def test_who_serves_another_role_loads_or_stands_by_is_no_peer() -> None:
    gpu, ane = record("gpu", GPU).model_copy(update={"prefer": "energy"}), record("ane", ANE)
    loading = record("loading", GPU).model_copy(update={"serving": False})
    assert peers(ane, [gpu, loading, record("g", None, "generation")]) == []
    assert peers(record("cpu", None), [gpu, ane, loading]) == [ane]
    assert peers(record("cpu", None), [gpu]) == [gpu], "nobody is there to stand by for"


@pytest.mark.parametrize(
    ("now", "news"),
    [
        (GPU, False),
        (MeasuredCost(call_s=0.022, token_s=5.5e-6, batch_tokens=4096), False),
        (MeasuredCost(call_s=0.020, token_s=9e-6, batch_tokens=4096), True),
        (MeasuredCost(call_s=0.010, token_s=7e-6, batch_tokens=4096), True),
        (None, True),
    ],
)
def test_a_cost_is_told_anew_when_it_is_much_another(now: MeasuredCost | None, news: bool) -> None:
    assert is_news(GPU, now) is news
    assert not is_news(None, None)


def test_workers_hear_of_each_others_costs_and_of_their_changes(connection: Redis) -> None:
    costs, told = {"ane": ANE, "gpu": GPU}, list[object]()
    ane, gpu = (
        Routing(
            record(name, None),
            is_serving=lambda: True,
            engine_deaths=lambda: 0,
            cost=lambda name=name: costs[name],  # type: ignore[misc]
            tell=told.append if name == "gpu" else lambda fact: None,
        )
        for name in costs
    )
    for each in (gpu, ane, gpu, gpu):
        each.look(connection)
    expected = shares(record("gpu", GPU), [record("ane", ANE)])
    assert [fact for fact in told if isinstance(fact, Shared)] == [Shared(expected)]
    costs["ane"] = GPU
    for each in (ane, gpu):
        each.look(connection)
    assert told[-1] == Shared((Share(0.5, 0.5), Share(0.5, 0.5)))


@pytest.mark.system
def test_of_two_unequal_workers_each_takes_about_what_it_can(fleet: Fleet) -> None:
    fast, slow = (
        fleet.start("--simulated-a-ms", "0", "--simulated-b-us", b_us, "--max-batch-tokens", "256")
        for b_us in ("500", "5000")
    )
    texts = (" ".join(["word"] * 14) for _ in range(960))  # 16 tokens each: 1 s of 11 for the slow one
    handles = list(Producer(connection=fleet.connection).embed_many(texts, texts_per_job=8, max_backlog_jobs=200))
    took = Counter(handle.result(timeout_s=60).provenance.worker for handle in handles)
    assert len(took) == 2
    (_, most), (_, least) = took.most_common()
    assert most + least == 120
    assert 3 <= least <= 24, "an eleventh is its share"
    assert fast.process.poll() is slow.process.poll() is None
