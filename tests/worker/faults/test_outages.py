"""Networks, servers, clocks and laptops that misbehave, one at a time: workers live through it and go on.

`scripts/chaos` does the same at random. A lease is two seconds here, so that one can be outlived.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis
from rq import Callback, Queue
from rq.serializers import JSONSerializer

from impetus_producer import EmbeddingHandle, ImpetusError, Producer, ResultTimeoutError
from impetus_producer.contract import STREAM_KEY
from tests.patience import eventually

from .breakable import Server, wake
from .expected import text_of
from .site import LEASE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from .breakable import Workers
    from .proxy import Proxy
    from .site import Site

pytestmark = pytest.mark.system
EMBED = "impetus_worker.jobs.embed"
FOUND_OUT_WITHIN_S = 45
"""The longest that a worker may take, on a machine that is not busy, to find that its connections were forgotten."""
STOPPED_WITHIN_S = 30
"""The longest that one may take to stop where no server answers it."""


def pass_time(seconds: float) -> None:
    """The clock of a fault, not a wait for an effect."""
    over = threading.Event()
    timer = threading.Timer(seconds, over.set)
    timer.start()
    assert over.wait(seconds + 30)
    timer.join()


def processes(workers: Workers) -> list[int]:
    """Workers and engines: as long as these are the same, no model was loaded anew."""
    return [*workers.worker_pids(), *workers.engine_pids()]


def long_prompts(count: int) -> list[str]:
    """Prompts to which the simulated engine has much to say."""
    said = ((f"prompt {number}", len(text_of({"prompt": f"prompt {number}"}).split())) for number in range(1000))
    return [prompt for prompt, words in said if words >= 50][:count]


def events(site: Site, job_id: str, event: str) -> list[int]:
    """When, in ms of the server's time, the stream of a generation said so."""
    entries: Any = site.connection.xrange(f"{STREAM_KEY}{job_id}")
    return [int(at.decode().partition("-")[0]) for at, fields in entries if fields[b"event"] == event.encode()]


# -- networks --------------------------------------------------------------------------------------------------------


def test_an_idle_worker_whose_connections_were_forgotten_in_silence_serves_again(site: Site) -> None:
    network = site.network()
    workers = site.start(url=network.url)
    before = processes(workers)
    site.producer.embed("a").result(timeout_s=60)
    assert network.forget()
    job = site.producer.embed("b")
    eventually(lambda: site.status(job.job_id) == "finished", FOUND_OUT_WITHIN_S)
    site.check([job.job_id])
    assert processes(workers) == before


def test_a_running_job_is_cancelled_though_the_workers_connections_were_forgotten(site: Site) -> None:
    network = site.network()
    # A lease that the silence does not outlive: else the job is put back, and is cancelled where it waits.
    site.start(url=network.url, a_ms=120_000, lease_s=2 * FOUND_OUT_WITHIN_S)
    job = site.producer.embed("a")
    eventually(lambda: site.status(job.job_id) == "started")
    assert network.forget()
    with pytest.raises(ResultTimeoutError):
        job.cancel(timeout_s=0)
    eventually(lambda: site.status(job.job_id) == "stopped", FOUND_OUT_WITHIN_S)


def test_a_worker_behind_a_silent_network_stops_when_told_to_and_its_jobs_run_elsewhere(site: Site) -> None:
    network = site.network()
    cut_off = site.start(url=network.url, a_ms=2000)
    jobs = [site.producer.embed(f"text {number}").job_id for number in range(12)]
    eventually(lambda: any(site.status(job) == "started" for job in jobs))
    network.black_hole()
    # With nobody to tell, it waits no longer than for one answer.
    assert cut_off.stop(STOPPED_WITHIN_S) == 0
    assert "stopping without Redis" in site.said()
    site.start()
    site.check(jobs)


def reset(network: Proxy) -> None:
    network.reset()


def cut_answers(network: Proxy) -> None:
    network.cut_answers(2)


def flap(network: Proxy) -> None:
    network.refuse_connections()
    pass_time(0.3)
    network.heal()


def delay(network: Proxy) -> None:
    network.delay(0.2)
    pass_time(1)
    network.heal()


def black_hole(network: Proxy) -> None:
    network.black_hole()
    pass_time(LEASE_S)
    network.heal()


@pytest.mark.parametrize("fault", [reset, cut_answers, flap, delay, black_hole])
def test_a_network_that_breaks_again_and_again_costs_no_job_and_no_worker(site: Site, fault: Any) -> None:
    network = site.network()
    workers = site.start(url=network.url, a_ms=20, max_batch_texts=8)
    before = processes(workers)
    # Some seconds of work, so that both faults strike in the middle of it however rarely it is looked.
    handles = site.producer.embed_many(map(str, range(1600)), texts_per_job=2, max_backlog_jobs=1000)
    ids = [handle.job_id for handle in handles]
    for _ in range(2):
        ended = site.connection.zcard("rq:finished:embedding-bulk")
        eventually(lambda ended=ended: site.connection.zcard("rq:finished:embedding-bulk") > ended)  # type: ignore[misc]
        fault(network)
    site.check(ids)
    assert processes(workers) == before


# -- servers ---------------------------------------------------------------------------------------------------------


REFUSALS: dict[str, tuple[Callable[[Server], None], Callable[[Server], None]]] = {
    "MISCONF": (Server.refuse_writes_as_misconfigured, Server.accept_writes),
    "NOREPLICAS": (Server.refuse_writes_for_want_of_replicas, Server.accept_writes),
    "BUSY": (Server.be_busy, Server.be_free),
    "nothing": (Server.freeze, Server.thaw),
}


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_server_that_refuses_for_longer_than_a_lease_costs_no_job_and_no_model_is_loaded_anew(
    site: Site, answer: str
) -> None:
    workers = site.start(a_ms=50, max_batch_texts=4)
    before = processes(workers)
    ids = [handle.job_id for handle in site.producer.embed_many(map(str, range(100)), texts_per_job=2)]
    eventually(lambda: site.connection.zcard("rq:finished:embedding-bulk"))
    begin, end = REFUSALS[answer]
    begin(site.server)
    pass_time(1.5 * LEASE_S)
    end(site.server)
    site.check(ids)
    assert processes(workers) == before


def test_whatever_a_server_answers_is_passing(site: Site) -> None:
    network = site.network()
    workers = site.start(url=network.url, a_ms=50, max_batch_texts=4)
    before = processes(workers)
    ids = [handle.job_id for handle in site.producer.embed_many(map(str, range(100)), texts_per_job=2)]
    eventually(lambda: site.connection.zcard("rq:finished:embedding-bulk"))
    for answer in ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "UNBLOCKED", "TRYAGAIN", "ERR", "NEVERHEARD"):
        network.answer_with(f"{answer} says the server")
        pass_time(0.6)
    network.heal()
    site.check(ids)
    assert processes(workers) == before


def try_to_enqueue(producer: Producer, text: str) -> EmbeddingHandle | None:
    try:
        return producer.embed(text)
    except ImpetusError:
        return None


def test_workers_and_producers_made_before_a_failover_behind_one_address_go_on_after_it(site: Site) -> None:
    network, other = site.network(), site.another_server()
    workers, producer = site.start(url=network.url), Producer(network.url)
    before = processes(workers)
    producer.embed("a").result(timeout_s=60)
    assert site.server.hand_over_to(other)
    network.lead_to(other.port)
    job = eventually(lambda: try_to_enqueue(producer, "b"), 10)
    assert job is not None
    eventually(lambda: job.status() == "finished", 10)
    assert processes(workers) == before
    producer.connection.close()


def test_a_job_that_runs_during_a_failover_is_finished_by_the_worker_that_has_it(site: Site) -> None:
    network, other = site.network(), site.another_server()
    workers = site.start(url=network.url, a_ms=4 * LEASE_S * 1000)
    before = processes(workers)
    job = site.producer.embed("a")
    eventually(lambda: site.status(job.job_id) == "started")
    started_at: Any = site.connection.hget(f"rq:job:{job.job_id}", "started_at")
    assert site.server.hand_over_to(other)
    network.lead_to(other.port)
    with Redis.from_url(other.url) as connection:
        key = f"rq:job:{job.job_id}"
        eventually(lambda: connection.hget(key, "status") == b"finished")
        assert connection.hget(key, "started_at") == started_at
        assert connection.xlen(f"rq:results:{job.job_id}") == 1
    assert processes(workers) == before


# -- machines --------------------------------------------------------------------------------------------------------


def test_a_generation_goes_on_through_several_sleeps_each_longer_than_its_lease(site: Site) -> None:
    workers = site.start(roles=("generation",), a_ms=200)
    before = processes(workers)
    (prompt,) = long_prompts(1)
    job = site.producer.generate(prompt, stream=True)
    for _ in range(3):
        said = len(events(site, job.job_id, "text"))
        eventually(lambda said=said: len(events(site, job.job_id, "text")) > said + 2)  # type: ignore[misc]
        asleep = workers.sleep()
        pass_time(2 * LEASE_S)
        wake(asleep)
    assert job.result(timeout_s=30).text == text_of({"prompt": prompt})
    assert len(events(site, job.job_id, "start")) == 1
    assert not site.connection.exists("impetus:deaths:generation")
    site.check([job.job_id])
    assert processes(workers) == before


def test_generations_that_were_in_flight_at_one_death_of_a_worker_run_together_again(site: Site) -> None:
    workers = site.start(roles=("generation",), a_ms=100)
    jobs = [site.producer.generate(prompt, stream=True) for prompt in long_prompts(8)]
    eventually(lambda: all(len(events(site, job.job_id, "text")) > 2 for job in jobs))
    (pid,) = workers.worker_pids()
    os.kill(pid, signal.SIGKILL)
    site.check(job.job_id for job in jobs)
    starts = [events(site, job.job_id, "start") for job in jobs]
    assert [len(each) for each in starts] == [2] * len(jobs)
    ends = [events(site, job.job_id, "end")[-1] for job in jobs]
    assert max(each[-1] for each in starts) < min(ends)


def test_an_engine_that_stands_still_while_much_is_written_to_it_does_not_keep_a_worker_from_stopping(
    site: Site,
) -> None:
    workers = site.start(roles=("generation",))
    (engine,) = workers.engine_pids()
    os.kill(engine, signal.SIGSTOP)
    jobs = [site.producer.generate(f"{number} " + 1_000_000 * "x") for number in range(4)]
    eventually(lambda: all(site.status(job.job_id) == "started" for job in jobs))
    workers.process.send_signal(signal.SIGTERM)
    eventually(lambda: "stopping" in site.said())
    workers.process.send_signal(signal.SIGTERM)
    assert workers.process.wait(60) == 0
    eventually(lambda: all(site.status(job.job_id) == "queued" for job in jobs))
    assert site.connection.llen("rq:queue:generation") == len(jobs)


def test_a_terminal_that_closes_stops_workers_as_sigterm_does(site: Site) -> None:
    workers = site.start(roles=("generation",), a_ms=60)
    job = site.producer.generate(long_prompts(1)[0], max_tokens=30, stream=True)
    eventually(lambda: events(site, job.job_id, "text"))
    workers.process.send_signal(signal.SIGHUP)
    assert workers.process.wait(60) == 0
    assert site.status(job.job_id) == "finished"
    assert "stopping (warm)" in site.said()


def test_workers_whose_clocks_differ_by_days_share_their_work_as_others_do(site: Site) -> None:
    ahead = site.start(a_ms=40, max_batch_texts=2, clock_ahead_s=2 * 86_400.0)
    behind = site.start(a_ms=40, max_batch_texts=2, clock_ahead_s=-2 * 86_400.0)
    before = [processes(ahead), processes(behind)]
    ids = [handle.job_id for handle in site.producer.embed_many(map(str, range(200)), texts_per_job=2)]
    eventually(lambda: len(by_whom(site)) == 2)
    os.kill(ahead.worker_pids()[0], signal.SIGKILL)
    site.check(ids)
    assert processes(behind) == before[1]
    assert "lease ran out" not in site.said(1)


def by_whom(site: Site) -> set[bytes]:
    """The workers that have finished something."""
    finished: Any = site.connection.zrange("rq:finished:embedding-bulk", 0, -1)
    results: list[Any] = [site.connection.xrange(f"rq:results:{job_id.decode()}") for job_id in finished]
    return {entries[0][1][b"worker_name"] for entries in results if entries}


# -- endings ---------------------------------------------------------------------------------------------------------


def test_while_callbacks_take_their_time_everybody_else_is_served(site: Site) -> None:
    callback = "tests.worker.faults.fault_callbacks.wait_for_go"
    site.start(allow_callbacks=(callback,))
    interactive = Queue("embedding", connection=site.connection, serializer=JSONSerializer)
    bulk = Queue("embedding-bulk", connection=site.connection, serializer=JSONSerializer)
    slow = [interactive.enqueue(EMBED, {"input": f"slow {each}"}, on_success=Callback(callback)) for each in range(3)]
    eventually(lambda: site.connection.lpop("in-callback"))
    # None of these has to wait for those: what asks nothing of RQ but a common ending ends beside it.
    parents = [bulk.enqueue(EMBED, {"input": f"parent {each}"}) for each in range(100)]
    dependents = [bulk.enqueue(EMBED, {"input": f"then {each.id}"}, depends_on=each) for each in parents]
    not_kept = [bulk.enqueue(EMBED, {"input": f"not kept {each}"}, result_ttl=0) for each in range(100)]
    for number in range(5):
        site.producer.embed(f"interactive {number}").result(timeout_s=20)
    site.await_ended([*(each.id for each in parents), *(each.id for each in dependents)], 20)
    eventually(lambda: not any(site.connection.exists(f"rq:job:{each.id}") for each in not_kept), 20)
    assert not any(site.status(each.id) == "finished" for each in slow)
    site.connection.rpush("go", *(["go"] * len(slow)))
    site.await_ended(each.id for each in slow)
