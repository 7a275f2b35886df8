"""One fault at a time, on purpose: after each, every job has ended exactly once and RQ's books are right.

`scripts/chaos` does the same at random. A lease is two seconds here, so that one can be outlived.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Callback, Queue
from rq.command import send_stop_job_command
from rq.serializers import JSONSerializer

from impetus_producer import ImpetusError, Producer
from impetus_worker.leases.claims import Answer, Claims, Ending, Verb, recover
from tests.patience import eventually

from ...producer.bulk.kept import answers_kept
from ..leases.lossy import lossy
from .account import HANG, POISON, QUEUES
from .breakable import children
from .site import LEASE_S

if TYPE_CHECKING:
    from .site import Site

pytestmark = pytest.mark.system
EMBED = "impetus_worker.jobs.embed"
IMPETUS = Path(sys.executable).parent / "impetus"


def tokens(site: Site) -> dict[str, str]:
    """The runs under way: by the job's id, what names the run."""
    held: list[Any] = [site.connection.hgetall(f"impetus:tokens:{queue}") for queue in QUEUES]
    return {job_id.decode(): run.decode().split()[0] for each in held for job_id, run in each.items()}


def lapsed(site: Site) -> bool:
    """Whether all leases have run out."""
    seconds: Any = site.connection.time()
    return not any(site.connection.zcount(f"impetus:leases:{queue}", seconds[0] + 1, "+inf") for queue in QUEUES)


def ended_by(site: Site, job_id: str) -> str:
    """Which run wrote the result."""
    entries: Any = site.connection.xrange(f"rq:results:{job_id}")
    ((_, entry),) = entries
    return str(entry[b"execution_id"].decode())


def lease_end(site: Site, job_id: str) -> float:
    return float(site.connection.zscore("impetus:leases:embedding", job_id) or 0)


# -- frozen workers --------------------------------------------------------------------------------------------------


def test_a_worker_frozen_past_its_lease_writes_nothing_when_another_has_finished_its_job(site: Site) -> None:
    frozen = site.start()
    (pid,), (engine,), (name,) = frozen.worker_pids(), frozen.engine_pids(), site.names()
    os.kill(engine, signal.SIGSTOP)  # so that the job is not over before the worker is frozen too
    job = site.producer.embed(["a", "b"])
    eventually(lambda: site.status(job.job_id) == "started")
    os.kill(pid, signal.SIGSTOP)
    site.start()
    result = job.result(timeout_s=60)
    assert result.provenance.worker != name.removeprefix("rq:worker:")
    for each in (engine, pid):
        os.kill(each, signal.SIGCONT)
    eventually(lambda: f"job {job.job_id}" in site.said(0))
    site.check([job.job_id])
    assert frozen.worker_pids() == [pid]


def test_a_lone_worker_that_wakes_past_its_leases_goes_on_with_the_runs_it_has(site: Site) -> None:
    workers = site.start(max_batch_texts=2)
    (pid,), (engine,) = workers.worker_pids(), workers.engine_pids()
    os.kill(engine, signal.SIGSTOP)  # so that not all is over before the worker is frozen too
    handles = list(site.producer.embed_many(map(str, range(40)), texts_per_job=2))
    eventually(lambda: site.connection.zcard("rq:wip:embedding-bulk"))
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: lapsed(site))
    held = tokens(site)
    assert held
    for each in (engine, pid):
        os.kill(each, signal.SIGCONT)
    site.check(handle.job_id for handle in handles)
    assert {job_id: ended_by(site, job_id) for job_id in held} == held
    assert workers.worker_pids() == [pid]


def test_a_worker_frozen_in_a_callback_past_its_lease_writes_nothing(site: Site) -> None:
    callback = "tests.worker.faults.fault_callbacks.wait_for_go"
    frozen = site.start(allow_callbacks=(callback,))
    (pid,) = frozen.worker_pids()
    queue = Queue("embedding", connection=site.connection, serializer=JSONSerializer)
    job = queue.enqueue(EMBED, {"input": "a"}, on_success=Callback(callback))
    eventually(lambda: site.connection.lpop("in-callback"))
    os.kill(pid, signal.SIGSTOP)
    # As time would: the lease of a job in RQ's own hands is long.
    assert site.connection.zadd("impetus:leases:embedding", {job.id: 1}, xx=True, ch=True) == 1
    other = site.start(allow_callbacks=(callback,))
    eventually(lambda: site.connection.lpop("in-callback"))
    # The frozen one was first to wait for its turn, and finds it when it wakes; the other takes the second.
    site.connection.rpush("go", "one", "two")
    site.await_ended([job.id])
    os.kill(pid, signal.SIGCONT)
    eventually(lambda: f"job {job.id}" in site.said(0) or site.connection.xlen(f"rq:results:{job.id}") > 1)
    assert (frozen.worker_pids(), len(other.worker_pids())) == ([pid], 1)
    site.check([job.id])


# -- the server ------------------------------------------------------------------------------------------------------


def test_a_server_killed_and_started_again_in_the_middle_of_batches_loses_nothing(site: Site) -> None:
    # Work for seven seconds and more, so that there is some left at the second kill, however late it comes.
    workers = site.start(a_ms=100, max_batch_texts=8, roles=("embedding", "generation"))
    pids = sorted(workers.worker_pids())
    ids = [handle.job_id for handle in site.producer.embed_many(map(str, range(600)), texts_per_job=2)]
    ids += [site.producer.generate(str(number), max_tokens=20).job_id for number in range(40)]
    for _ in range(2):
        eventually(lambda: site.connection.zcard("rq:wip:embedding-bulk"))
        site.server.kill()
        site.server.start()
    site.check(ids)
    assert sorted(workers.worker_pids()) == pids


def test_connections_cut_again_and_again_under_load_cost_no_job(site: Site) -> None:
    workers = site.start(a_ms=5, max_batch_texts=8)
    (pid,) = workers.worker_pids()
    acknowledged: list[str] = []
    done = threading.Event()

    def produce() -> None:
        producer = Producer(site.url)
        while not done.is_set():
            with contextlib.suppress(ImpetusError):
                acknowledged.append(producer.embed(["a", "b", "c"], bulk=True).job_id)
        producer.connection.close()

    producing = threading.Thread(target=produce)
    producing.start()
    for cut in range(1, 31):
        eventually(partial(lambda wanted: len(acknowledged) >= wanted, 10 * cut))
        site.cut("normal")
    done.set()
    producing.join()
    site.check(acknowledged)
    assert workers.worker_pids() == [pid]


def test_a_worker_whose_connections_were_cut_still_hears_that_a_job_is_to_stop(site: Site) -> None:
    site.start(a_ms=60_000)
    job = site.producer.embed("a")
    eventually(lambda: site.status(job.job_id) == "started")
    # The worker knows that it has the job once it renews the lease; before that the cut may lose the claim's answer.
    claimed = lease_end(site, job.job_id)
    eventually(lambda: lease_end(site, job.job_id) > claimed)
    site.cut("pubsub")
    site.cut("normal")
    # A connection that finds itself cut has the others made anew, and RQ's message is lost on one that is going.
    cut_at = lease_end(site, job.job_id)
    eventually(lambda: lease_end(site, job.job_id) > cut_at)
    (name,) = site.names()
    channel = f"rq:pubsub:{name.removeprefix('rq:worker:')}"
    eventually(lambda: dict(site.connection.pubsub_numsub(channel))[channel.encode()])
    send_stop_job_command(site.connection, job.job_id, serializer=JSONSerializer)
    eventually(lambda: site.status(job.job_id) == "stopped")


def test_a_server_out_of_memory_for_longer_than_a_lease_costs_no_job_and_no_lease(site: Site) -> None:
    workers = site.start(a_ms=100, max_batch_texts=4)  # five seconds of work, so that runs are held at the fault
    (pid,), names = workers.worker_pids(), site.names()
    ids = [handle.job_id for handle in site.producer.embed_many(map(str, range(200)), texts_per_job=2)]
    eventually(lambda: site.connection.zcard("rq:finished:embedding-bulk"))
    site.connection.config_set("maxmemory", "1mb")
    held = tokens(site)
    assert held
    refused = threading.Event()
    threading.Timer(2 * LEASE_S, refused.set).start()  # the clock of the fault, not a wait for an effect
    assert refused.wait(30)
    still, lost = tokens(site), lapsed(site)
    site.connection.config_set("maxmemory", "0")
    site.check(ids)
    assert workers.worker_pids() == [pid]
    assert site.names() == names
    assert still.items() >= held.items()
    assert not lost


def test_while_the_server_is_out_of_memory_a_producer_gets_a_sentence(site: Site) -> None:
    site.connection.config_set("maxmemory", "1")
    producer = Producer(site.url, patience_s=0)
    with pytest.raises(ImpetusError, match="memory"):
        producer.embed("a")
    producer.connection.close()


@pytest.mark.parametrize("what", ["EXEC", "EVALSHA"])
def test_an_enqueueing_whose_answer_was_lost_makes_one_run(site: Site, what: str) -> None:
    """The client sends it again, since it cannot know; the second must not become a second run."""
    client, lose = lossy(site.url)
    site.start()
    producer = Producer(connection=client)
    producer.embed("a").result(timeout_s=20)
    lose.append(what)
    job = producer.embed("b")
    site.check([job.job_id])
    client.close()


def test_a_job_that_ended_is_not_run_again_because_its_id_is_still_in_the_queue(site: Site) -> None:
    site.start()
    job = site.producer.embed("a")
    job.result(timeout_s=20)
    site.connection.rpush("rq:queue:embedding", job.job_id)
    site.check([job.job_id, site.producer.embed("b").job_id])


def test_a_claim_whose_answer_was_lost_is_taken_back_and_leaves_no_trace(site: Site) -> None:
    client, lose = lossy(site.url, retries=0)
    worker = Claims("w1", 1)
    record: dict[Any, Any] = {"birth": "now", "state": "idle", "queues": "embedding"}
    site.connection.hset("rq:worker:w1", mapping=record)
    worker.claim(["embedding"], 1, 10**9).run(client)  # so that the script is known
    job = site.producer.embed("a")
    lose.append("EVALSHA")
    with pytest.raises(RedisConnectionError, match="lost"):
        worker.claim(["embedding"], 1, 10**9).run(client)
    assert site.status(job.job_id) == "started"
    assert site.connection.hget("rq:worker:w1", "state") == b"busy"
    eventually(lambda: recover("embedding", 0.01).run(site.connection) == [job.job_id])
    assert site.connection.hget("rq:worker:w1", "state") == b"idle"
    (again,) = worker.claim(["embedding"], 1, 10**9).run(client).jobs
    assert (again.deaths, again.suspect) == (0, False)
    worker.finish([]).run(client)  # so that this one is known
    lose.append("EVALSHA")
    with pytest.raises(RedisConnectionError, match="lost"):
        worker.finish([Ending(again, Verb.FINISH, b"1", 100)]).run(client)
    assert worker.finish([Ending(again, Verb.FINISH, b"1", 100)]).run(client) == [Answer.NOT_OURS]
    assert site.connection.xlen(f"rq:results:{job.job_id}") == 1
    assert site.connection.smembers("rq:worker:w1:executions") == set()
    assert site.connection.hget("rq:worker:w1", "state") == b"idle"
    client.close()


def test_an_id_that_is_in_a_queue_twice_is_claimed_once(site: Site) -> None:
    worker, job = Claims("w1", 1), site.producer.embed("a")
    site.connection.rpush("rq:queue:embedding", job.job_id)
    assert [each.id for each in worker.claim(["embedding"], 5, 10**9).run(site.connection).jobs] == [job.job_id]
    assert site.connection.zcard("rq:wip:embedding") == 1


# -- texts -----------------------------------------------------------------------------------------------------------


def test_poison_and_a_hang_among_others_fail_alone(site: Site) -> None:
    workers = site.start(wait=False)
    ids = [site.producer.embed([str(number), "beside it"]).job_id for number in range(8)]
    ids.append(site.producer.embed(["beside it", POISON]).job_id)
    hasty = Producer(connection=site.connection, timeout_s=1)
    hang = hasty.embed(["beside it", HANG]).job_id
    ids += [site.producer.embed(str(number)).job_id for number in range(8)]
    site.check([*ids, hang], failed=2)
    assert len(workers.worker_pids()) == 1


# -- impetus embed ---------------------------------------------------------------------------------------------------


def embed(
    site: Site | None, source: Path, output: Path, *options: str, limit_bytes: int | None = None
) -> subprocess.Popen[str]:
    """`impetus embed` as a user runs it; `limit_bytes`: the largest file that it may write."""
    limit = None if limit_bytes is None else (limit_bytes, limit_bytes)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IMPETUS_")}
    environment |= {"TMPDIR": str(output.parent), "IMPETUS_EMBEDDING_BACKEND": "simulated"}
    environment["IMPETUS_STATE_DIR"] = str(output.parent / "state")
    environment["IMPETUS_MAX_BATCH_TEXTS"] = "6"  # so that a server of its own has not ended before it is looked at
    return subprocess.Popen(
        [IMPETUS, "embed", source, "-o", output, *(("--redis-url", site.url) if site else ()), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        start_new_session=True,
    )


def documents(folder: Path, count: int) -> Path:
    source = folder / "docs.txt"
    source.write_text("".join(f"text number {number}\n" for number in range(count)))
    return source


@pytest.mark.parametrize("ending", ["parquet", "npy"])
def test_a_full_disk_ends_impetus_embed_with_a_sentence_and_withdraws_its_jobs(
    site: Site, tmp_path: Path, ending: str
) -> None:
    site.start(a_ms=1)
    source, folder = documents(tmp_path, 6000), tmp_path / "out"
    folder.mkdir()
    command = embed(site, source, folder / f"vectors.{ending}", limit_bytes=2_000_000)
    _, said = command.communicate(timeout=60)
    assert command.returncode == 1, said
    assert "Traceback" not in said
    assert re.search(r"answers\.sqlite' cannot be written: the disk or a quota is full", said), said
    assert "is not whole yet" in said, said
    assert [path.name for path in folder.iterdir()] == [f"vectors.{ending}.impetus"]
    site.check([], some_discarded=True)


def test_ctrl_c_in_impetus_embed_withdraws_the_jobs_that_wait(site: Site, tmp_path: Path) -> None:
    site.start(a_ms=100, max_batch_texts=4)
    source, folder = documents(tmp_path, 5000), tmp_path / "out"
    folder.mkdir()
    command = embed(site, source, folder / "vectors.jsonl", "--texts-per-job", "4", "--max-backlog-jobs", "1000")
    eventually(
        lambda: site.connection.zcard("rq:wip:embedding-bulk") and site.connection.llen("rq:queue:embedding-bulk")
    )
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=60)
    assert command.returncode in (1, 130)
    assert "is not whole yet" in said
    assert "Traceback" not in said
    assert [path.name for path in folder.iterdir()] == ["vectors.jsonl.impetus"]
    eventually(lambda: not site.connection.llen("rq:queue:embedding-bulk"))
    site.check([], some_discarded=True)


@pytest.mark.parametrize("victim", ["worker", "server", "guard", "embed"])
def test_impetus_embed_with_its_own_server_survives_or_says_why_and_leaves_nothing(tmp_path: Path, victim: str) -> None:
    source, folder = documents(tmp_path, 8_000), tmp_path / "out"
    folder.mkdir()
    command = embed(None, source, folder / "vectors.jsonl", "--texts-per-job", "16")
    eventually(lambda: command.poll() is not None or answers_kept(folder / "vectors.jsonl") > 0)
    assert command.poll() is None, command.communicate()
    tree = _tree(command.pid)
    try:
        (pid,) = [each for each, role in tree.items() if role == victim]
        os.kill(pid, signal.SIGKILL)
        _, said = command.communicate(timeout=60)
        eventually(lambda: not any(map(_runs, tree)), 15)
    finally:
        for each in filter(_runs, tree):
            os.kill(each, signal.SIGKILL)
    left = {path.name for path in folder.iterdir()}
    assert "Traceback" not in said
    if victim == "embed":
        assert command.returncode == -signal.SIGKILL
    elif victim == "worker" or command.returncode == 0:
        assert command.returncode == 0, said
        assert (folder / "vectors.jsonl").read_bytes().count(b"\n") == 8_000
        assert left == {"vectors.jsonl"}
    else:
        assert command.returncode == 1, said
        assert said.count("\n") < 8, said
        assert left == {"vectors.jsonl.impetus"}


def _tree(pid: int) -> dict[int, str]:
    """Every process under `impetus embed`, by what it is."""
    (supervisor,) = children(pid)
    tree = {pid: "embed", supervisor: "supervisor"}
    for child in children(supervisor):
        below = children(child)
        worker = _command(child).rstrip().endswith("worker_process")
        tree |= {child: "worker" if worker else "guard"}
        tree |= dict.fromkeys(below, "engine" if worker else "server")
    assert sorted(tree.values()) == ["embed", "engine", "guard", "server", "supervisor", "worker"]
    return tree


def _command(pid: int) -> str:
    return subprocess.run(
        ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout


def _runs(pid: int) -> bool:
    seen = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(seen.strip()) and not seen.startswith("Z")
