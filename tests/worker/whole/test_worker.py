"""Real worker processes at a real server: what clients and operators see, and what survives."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import zlib
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from rq import Callback, Queue, Retry
from rq.cli.cli import main as rq_commands
from rq.command import send_stop_job_command
from rq.job import Job
from rq.suspension import resume, suspend
from rq.utils import as_text

from impetus_producer import InvalidRequestError, JobCancelledError, Producer
from tests.patience import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

    from ..conftest import Fleet

pytestmark = pytest.mark.system
EMBED, GENERATE = "impetus_worker.jobs.embed", "impetus_worker.jobs.generate"


def _has_failed(connection: Redis, key: str) -> bool:
    return connection.hget(key, "status") == b"failed"


def rq_info(url: str) -> str:
    return CliRunner().invoke(rq_commands, ["info", "--raw", "--url", url], catch_exceptions=False).stdout


def test_a_job_of_plain_rq_is_worked_and_its_return_value_is_the_result(fleet: Fleet) -> None:
    fleet.start()
    job = fleet.queue().enqueue(EMBED, {"input": "hello"})
    fleet.await_status(job, "finished")
    value = fleet.job(job.id).return_value()
    assert value is not None
    assert value["embeddings"]["shape"] == [1, 384]
    assert value["provenance"]["backend"] == "simulated"


def test_bad_jobs_fail_with_a_sentence_and_their_neighbours_finish(fleet: Fleet, tmp_path: Path) -> None:
    worker = fleet.start(wait=False)
    queue, connection = fleet.queue(), fleet.connection
    trap = tmp_path / "trap"
    requests: dict[str, object] = {
        "must be a JSON object": 3,
        "input: this field is required": {},
        "inputs: there is no such field": {"inputs": "a"},
        "input: the list is empty": {"input": []},
        "input: item 1 must be a string": {"input": ["a", 3]},
        "input: the text is longer than 10,000,000 bytes": {"input": "x" * 10_000_001},
        "input: the text holds half a surrogate pair": {"input": "\ud800"},
        "model: this worker serves simulated": {"input": "a", "model": "unknown/model"},
    }
    bad = {says: queue.enqueue(EMBED, request) for says, request in requests.items()}
    bad["names 'os.system'"] = queue.enqueue("os.system", f"touch {trap}")
    bad["names 'impetus_worker.jobs.generate'"] = queue.enqueue(GENERATE, {"prompt": "a"})
    for says, data in {
        "not JSON": b"\xff\xfe\x00",
        "not JSON (": zlib.compress(b'["impetus_worker.jobs.embed", null'),
        "a pickle, perhaps": zlib.compress(pickle.dumps((EMBED, None, ({"input": "a"},), {}))),
    }.items():
        bad[says] = queue.enqueue(EMBED, {"input": "replaced"})
        connection.hset(bad[says].key, "data", data)
    spoilt = queue.enqueue(EMBED, {"input": "a"}, retry=Retry(max=2))
    connection.hset(spoilt.key, mapping={"created_at": b"\xff", "retry_intervals": b"{", "data": b"\x80"})
    connection.hset(bad["not JSON"].key, mapping={"timeout": b"\xff", "result_ttl": b"x", "failure_ttl": b"\xfe"})
    good = [queue.enqueue(EMBED, {"input": f"good {number}"}) for number in range(5)]
    for job in good:
        fleet.await_status(job, "finished")
    for job in (*bad.values(), spoilt):
        eventually(partial(_has_failed, connection, job.key))
    for says, job in bad.items():
        if says != "not JSON":  # that one's hash RQ itself cannot read
            assert says in fleet.reason(job)
    assert not trap.exists()
    assert worker.process.poll() is None
    assert connection.zcard("rq:failed:embedding") == len(bad) + 1


def test_rq_info_counts_right_while_working_and_after(fleet: Fleet) -> None:
    fleet.start(roles="embedding,generation")
    engines = [fleet.engine_pid(role) for role in ("embedding", "generation")]
    for engine in engines:
        os.kill(engine, signal.SIGSTOP)  # however long it takes to ask
    producer = Producer(connection=fleet.connection)
    embedding, generation = producer.embed("a"), producer.generate("b", max_tokens=1)
    fleet.await_status(embedding.job_id, "started")
    fleet.await_status(generation.job_id, "started")
    during = rq_info(fleet.url)
    for engine in engines:
        os.kill(engine, signal.SIGCONT)
    assert "queue embedding 0, 1 executing, 0 finished, 0 failed" in during
    assert " busy embedding, embedding-bulk. jobs: 0 finished, 0 failed" in during
    embedding.result(timeout_s=30)
    generation.result(timeout_s=30)
    after = rq_info(fleet.url)
    assert "queue embedding 0, 0 executing, 1 finished, 0 failed" in after
    assert "queue generation 0, 0 executing, 1 finished, 0 failed" in after
    assert " idle embedding, embedding-bulk. jobs: 1 finished, 0 failed" in after
    assert " idle generation, generation-bulk. jobs: 1 finished, 0 failed" in after


def test_an_engine_killed_under_load_loses_no_job_and_fails_none(fleet: Fleet) -> None:
    fleet.start("--simulated-a-ms", "20", "--max-batch-texts", "8")
    handles = list(Producer(connection=fleet.connection).embed_many(map(str, range(400)), texts_per_job=4))
    for _ in range(3):
        before = fleet.engine_pid()
        os.kill(before, signal.SIGKILL)
        eventually(partial(_has_another_engine, fleet, before))
    for handle in handles:
        assert len(handle.result(timeout_s=60).vectors) == 4
    info = rq_info(fleet.url)
    assert "queue embedding-bulk 0, 0 executing, 100 finished, 0 failed" in info


def _has_another_engine(fleet: Fleet, before: int) -> bool:
    try:
        return fleet.engine_pid() != before
    except AssertionError:
        return False


def test_a_worker_killed_under_load_is_replaced_and_its_jobs_run_at_once(fleet: Fleet) -> None:
    fleet.start("--simulated-a-ms", "50", "--max-batch-texts", "4")
    handles = list(Producer(connection=fleet.connection).embed_many(map(str, range(200)), texts_per_job=2))
    eventually(lambda: fleet.connection.zcard("rq:wip:embedding-bulk"))
    os.kill(fleet.worker_pid(), signal.SIGKILL)
    for handle in handles:
        assert len(handle.result(timeout_s=60).vectors) == 2
    info = rq_info(fleet.url)
    assert "queue embedding-bulk 0, 0 executing, 100 finished, 0 failed" in info
    assert len([line for line in info.splitlines() if line.startswith("worker ")]) == 1


def test_when_the_supervisor_is_killed_nothing_is_left_and_jobs_are_back(fleet: Fleet) -> None:
    worker = fleet.start("--simulated-a-ms", "5000")  # so that it runs however late it is looked
    handle = Producer(connection=fleet.connection).embed("a")
    fleet.await_status(handle.job_id, "started")
    pids = [fleet.worker_pid(), fleet.engine_pid()]
    worker.stop(signal.SIGKILL)
    for pid in pids:
        eventually(partial(_is_gone, pid))
    fleet.start()
    assert len(handle.result(timeout_s=40).vectors) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system ends no process with another")
def test_an_engine_that_is_frozen_does_not_outlive_a_worker_and_a_supervisor_that_were_killed(fleet: Fleet) -> None:
    worker = fleet.start()
    pid, engine = fleet.worker_pid(), fleet.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    worker.process.kill()
    os.kill(pid, signal.SIGKILL)
    eventually(partial(_is_gone, engine))


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_text_that_kills_the_engine_fails_as_poison_and_its_neighbours_finish(fleet: Fleet) -> None:
    fleet.start(wait=False)
    queue = fleet.queue()
    jobs = [queue.enqueue(EMBED, {"input": ["a", "simulate:crash" if number == 3 else "b"]}) for number in range(6)]
    for number, job in enumerate(jobs):
        fleet.await_status(job, "failed" if number == 3 else "finished", limit_s=60)
    assert fleet.reason(jobs[3]).endswith("the engine died each time it ran item 1, and nothing beside it")


def test_what_the_books_say_of_a_job_is_obeyed_before_it_runs(fleet: Fleet) -> None:
    poison, twice, unwanted = (fleet.queue().enqueue(EMBED, {"input": "a"}) for _ in range(3))
    fleet.connection.hset("impetus:deaths:embedding", mapping={poison.id: 5, f"{poison.id}:alone": 3})
    fleet.connection.hset("impetus:deaths:embedding", mapping={twice.id: 5, f"{twice.id}:alone": 2})
    fleet.connection.set(f"impetus:cancel:{unwanted.id}", 1)
    fleet.start(wait=False)
    fleet.await_status(poison, "failed")
    assert fleet.reason(poison).endswith("3 workers died with this job running, and nothing beside it")
    fleet.await_status(twice, "finished")
    fleet.await_status(unwanted, "stopped")


def test_an_error_of_the_device_fails_the_text_that_causes_it_alone(fleet: Fleet) -> None:
    fleet.start(wait=False)
    queue = fleet.queue()
    jobs = [queue.enqueue(EMBED, {"input": "simulate:error" if number == 3 else "b"}) for number in range(6)]
    for number, job in enumerate(jobs):
        fleet.await_status(job, "failed" if number == 3 else "finished")
    assert "a simulated error of the device" in fleet.reason(jobs[3])


def test_a_job_past_its_timeout_fails_and_a_stuck_engine_is_replaced(fleet: Fleet) -> None:
    fleet.start(wait=False)
    stuck = fleet.queue().enqueue(EMBED, {"input": "simulate:hang"}, job_timeout=1)
    neighbour = fleet.queue().enqueue(EMBED, {"input": "a"}, job_timeout=60)
    fleet.await_status(stuck, "failed")
    assert "longer than its timeout of 1 s" in fleet.reason(stuck)
    fleet.await_status(neighbour, "finished")


def test_a_warm_stop_finishes_what_runs_and_puts_the_rest_back(fleet: Fleet) -> None:
    worker = fleet.start("--max-batch-texts", "1")
    engine = fleet.engine_pid()
    os.kill(engine, signal.SIGSTOP)  # which has begun the first then, as far as the worker knows
    handles = [Producer(connection=fleet.connection).embed(str(number), bulk=True) for number in range(20)]
    eventually(lambda: fleet.connection.zcard("rq:wip:embedding-bulk") >= 6)
    worker.process.send_signal(signal.SIGTERM)
    eventually(lambda: fleet.connection.zcard("rq:wip:embedding-bulk") == 1)
    os.kill(engine, signal.SIGCONT)
    assert worker.process.wait(timeout=30) == 0
    assert [handle.status() for handle in handles] == ["finished"] + ["queued"] * 19
    waiting = [as_text(job_id) for job_id in fleet.connection.lrange("rq:queue:embedding-bulk", 0, -1)]
    assert waiting == [handle.job_id for handle in handles[1:]]
    assert fleet.connection.smembers("rq:workers") == set()
    assert fleet.connection.keys("rq:execution*") == []


def test_a_second_signal_puts_everything_back_at_once(fleet: Fleet) -> None:
    worker = fleet.start("--simulated-a-ms", "60000")
    handle = Producer(connection=fleet.connection).embed("a")
    fleet.await_status(handle.job_id, "started")
    worker.process.send_signal(signal.SIGINT)
    eventually(lambda: "stopping (warm)" in worker.log)
    worker.process.send_signal(signal.SIGINT)
    eventually(lambda: worker.process.poll() is not None, limit_s=10)
    assert handle.status() == "queued"
    assert fleet.connection.lrange("rq:queue:embedding", 0, -1) == [handle.job_id.encode()]


def test_a_running_job_can_be_stopped(fleet: Fleet) -> None:
    fleet.start()
    os.kill(fleet.engine_pid(), signal.SIGSTOP)  # so that it runs however long the test takes
    producer = Producer(connection=fleet.connection)
    running = producer.embed("a")
    fleet.await_status(running.job_id, "started")
    assert running.cancel()
    with pytest.raises(JobCancelledError):
        running.result(timeout_s=10)
    assert fleet.status(running.job_id) == "stopped"
    assert not running.cancel()
    assert fleet.connection.zcard("rq:wip:embedding") == 0


def test_a_generation_is_stopped_in_the_middle_and_the_next_one_runs(fleet: Fleet) -> None:
    fleet.start("--simulated-a-ms", "20", roles="generation")
    long = fleet.queue("generation").enqueue(GENERATE, {"prompt": "a", "max_tokens": 5000, "ignore_eos": True})
    fleet.await_status(long, "started")
    send_stop_job_command(fleet.connection, long.id)
    fleet.await_status(long, "stopped")
    assert Producer(connection=fleet.connection).generate("b", max_tokens=3).result(timeout_s=20).text


def test_suspended_workers_leave_the_queue_alone_until_resumed(fleet: Fleet) -> None:
    fleet.start()
    suspend(fleet.connection)
    job = fleet.queue().enqueue(EMBED, {"input": "a"})
    eventually(lambda: b"suspended" in [fleet.connection.hget(key, "state") for key in _worker_keys(fleet.connection)])
    assert fleet.status(job) == "queued"
    resume(fleet.connection)
    fleet.await_status(job, "finished")


def _worker_keys(connection: Redis) -> list[str]:
    return [as_text(key) for key in connection.smembers("rq:workers")]


def test_retries_dependents_and_scheduled_jobs_are_rqs_own(fleet: Fleet) -> None:
    fleet.start(wait=False)
    queue = fleet.queue()
    retried = queue.enqueue(EMBED, {"input": "simulate:error"}, retry=Retry(max=2))
    parent = queue.enqueue(EMBED, {"input": "parent"})
    child = queue.enqueue(EMBED, {"input": "child"}, depends_on=parent)
    scheduled = queue.enqueue_in(timedelta(seconds=1), EMBED, {"input": "later"})
    discarded = queue.enqueue(EMBED, {"input": "nobody asks"}, result_ttl=0)
    for job in (parent, child, scheduled):
        fleet.await_status(job, "finished")
    fleet.await_status(retried, "failed")
    assert fleet.job(retried.id).retries_left == 0
    eventually(lambda: not Job.exists(discarded.id, fleet.connection))
    assert "0 executing" in rq_info(fleet.url)


@pytest.mark.parametrize(("kind", "text", "deaths"), [("on_success", "a", 3), ("on_failure", 5, 4)])
def test_a_callback_that_ends_its_worker_each_time_fails_its_job_alone(
    fleet: Fleet, kind: str, text: Any, deaths: int
) -> None:
    name = "tests.worker.whole.callbacks.end_the_process"
    options: Any = {kind: Callback(name)}
    culprit = fleet.queue().enqueue(EMBED, {"input": text}, **options)
    beside = [fleet.queue().enqueue(EMBED, {"input": f"beside {each}"}) for each in range(5)]
    fleet.start("--allow-callbacks", name, wait=False)
    assert fleet.await_status(culprit, "failed") == "failed"
    assert "workers died with this job running" in fleet.reason(culprit)
    assert {fleet.await_status(each, "finished", "failed") for each in beside} == {"finished"}
    assert int(fleet.connection.get("ended") or 0) == deaths
    eventually(lambda: not fleet.connection.exists("impetus:deaths:embedding"))


def test_a_callback_runs_only_when_its_name_was_allowed(fleet: Fleet) -> None:
    fleet.start("--allow-callbacks", "tests.worker.whole.callbacks.note_success")
    queue = fleet.queue()
    allowed = queue.enqueue(EMBED, {"input": "a"}, on_success=Callback("tests.worker.whole.callbacks.note_success"))
    refused = queue.enqueue(EMBED, {"input": "a"}, on_failure=Callback("tests.worker.whole.callbacks.note_failure"))
    fleet.await_status(allowed, "finished")
    fleet.await_status(refused, "failed")
    assert "--allow-callbacks" in fleet.reason(refused)
    assert fleet.connection.get("noted") == allowed.id.encode()


def test_a_burst_ends_when_the_queues_are_empty(fleet: Fleet) -> None:
    jobs = [fleet.queue().enqueue(EMBED, {"input": "a"}) for _ in range(5)]
    worker = fleet.start("--burst", wait=False)
    assert worker.process.wait(timeout=30) == 0
    assert {fleet.status(job) for job in jobs} == {"finished"}


def test_a_burst_runs_what_its_own_jobs_put_on_the_queues(fleet: Fleet) -> None:
    chain = [fleet.queue().enqueue(EMBED, {"input": "a"})]
    for _ in range(8):
        chain.append(fleet.queue().enqueue(EMBED, {"input": "a"}, depends_on=chain[-1]))
    worker = fleet.start("--burst", wait=False)
    assert worker.process.wait(timeout=30) == 0
    assert [fleet.status(job) for job in chain] == ["finished"] * 9


def test_an_engine_that_dies_during_a_warm_stop_is_not_started_again(fleet: Fleet) -> None:
    worker = fleet.start("--simulated-a-ms", "60000")
    handle = Producer(connection=fleet.connection).embed("a")
    fleet.await_status(handle.job_id, "started")
    engine = fleet.engine_pid()
    worker.process.send_signal(signal.SIGTERM)
    eventually(lambda: "stopping (warm)" in worker.log)
    os.kill(engine, signal.SIGKILL)
    assert worker.process.wait(timeout=30) == 0
    assert handle.status() == "queued"
    assert fleet.connection.lrange("rq:queue:embedding", 0, -1) == [handle.job_id.encode()]


def test_two_workers_share_a_queue_and_finish_each_job_once(fleet: Fleet) -> None:
    fleet.start("--simulated-a-ms", "50", "--max-batch-texts", "4")
    fleet.start("--simulated-a-ms", "50", "--max-batch-texts", "4")
    handles = list(Producer(connection=fleet.connection).embed_many(map(str, range(400)), texts_per_job=2))
    workers = {handle.result(timeout_s=60).provenance.worker for handle in handles}
    assert len(workers) == 2
    assert all(fleet.connection.xlen(f"rq:results:{handle.job_id}") == 1 for handle in handles)


def test_an_unknown_model_is_told_within_seconds_and_the_worker_does_not_start_again(fleet: Fleet) -> None:
    worker = fleet.start("--embedding-backend", "cpu", "--embedding-model", "no/such-model", wait=False)
    eventually(lambda: worker.process.poll() is not None, limit_s=25)
    assert worker.process.returncode == 3
    assert "'no/such-model' was not found" in worker.log
    assert "Traceback" not in worker.log


def test_a_client_is_told_of_a_bad_request_before_it_is_sent(connection: Redis) -> None:
    producer = Producer(connection=connection)
    with pytest.raises(InvalidRequestError, match="input: item 1"):
        producer.embed(["a", 3])  # type: ignore[list-item]
    assert Queue("embedding", connection=connection).count == 0
