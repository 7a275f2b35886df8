"""Long jobs are read in a process of their own, where what they cost falls on nobody else."""

from __future__ import annotations

import json
import os
import queue
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.dispatcher import embedding_tokenizer
from impetus_producer.contract import EMBED_FUNCTION
from impetus_worker.allowed import NOTHING
from impetus_worker.batches.reading.rows import EmbeddingRequests, EncodedRequest
from impetus_worker.errors import InvalidRequestError, PoisonedJobError
from impetus_worker.host import child
from impetus_worker.host.reading_process import ReadingProcess
from impetus_worker.leases.claims import ClaimedJob
from tests.patience import eventually

from ..batches.batching import INFO, job

if TYPE_CHECKING:
    from collections.abc import Iterator

    from impetus_worker.inbox import ReadElsewhere

SIMULATED = replace(INFO, backend="simulated")


class Reading:
    """A process that reads, and what came of it."""

    def __init__(self) -> None:
        self.told: queue.Queue[ReadElsewhere] = queue.Queue()
        self.process = ReadingProcess(SIMULATED, NOTHING, self.told.put)  # type: ignore[arg-type]
        self.process.start()

    def read(self, *jobs: ClaimedJob, urgent: bool = True) -> None:
        for each in jobs:
            self.process.read(each, urgent=urgent)

    def came(self) -> ReadElsewhere:
        return self.told.get(timeout=60)

    def result(self, each: ClaimedJob) -> EncodedRequest[Any]:
        came = self.came()
        assert came.token == each.token
        assert isinstance(came.came, EncodedRequest)
        return came.came

    @property
    def pid(self) -> int:
        assert self.process._process is not None
        return self.process._process.pid

    def stand_still(self) -> int:
        """Has the process started, and stops it where it waits for a job; returns its number."""
        first = run_of("x", token="first")
        self.read(first)
        self.result(first)
        os.kill(self.pid, signal.SIGSTOP)
        return self.pid


@pytest.fixture
def reading() -> Iterator[Reading]:
    it = Reading()
    yield it
    it.process.stop()
    assert it.process.join(60)


def run_of(*texts: str, token: str = "e", **fields: object) -> ClaimedJob:
    return replace(job(*texts, **fields), token=token)  # type: ignore[arg-type]


def test_it_comes_to_the_same_as_in_the_loop(reading: Reading) -> None:
    long = run_of("the first text", "and another", dimensions=2)
    reading.read(long)
    there = reading.result(long)
    here = EmbeddingRequests(SIMULATED, [embedding_tokenizer(SIMULATED)], NOTHING).read(long.fields)
    assert [list(row.ids) for row in there.texts] == [list(row.ids) for row in here.texts]
    assert there.request == here.request
    assert there.request.dimensions == 2


def test_what_is_wrong_with_a_job_is_said_of_that_job(reading: Reading) -> None:
    bad, good = run_of("x", model="another", token="bad"), run_of("x", token="good")
    reading.read(bad, good)
    came = reading.came()
    assert came.token == "bad"
    assert isinstance(came.came, InvalidRequestError)
    assert "this worker serves" in str(came.came)
    reading.result(good)


def test_what_somebody_waits_for_is_read_before_bulk(reading: Reading) -> None:
    reading.stand_still()
    held, bulk, urgent = (run_of("x", token=token) for token in ("held", "bulk", "urgent"))
    reading.read(held)
    reading.read(bulk, urgent=False)
    reading.read(urgent)
    os.kill(reading.pid, signal.SIGCONT)
    assert [reading.came().token for _ in range(3)] == ["held", "urgent", "bulk"]


def test_a_job_that_takes_too_long_to_read_fails_and_the_next_is_read(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading.stand_still()
    slow, after = (run_of("x", token=token) for token in ("slow", "after"))
    with monkeypatch.context() as patch:
        patch.setattr(reading.process, "_limit_s", 0.2)
        reading.read(slow)
        came = reading.came()
    assert came.token == "slow"
    assert isinstance(came.came, PoisonedJobError)
    assert "took longer" in str(came.came)
    reading.read(after)
    reading.result(after)


def test_a_process_that_dies_once_is_no_fault_of_the_job(reading: Reading) -> None:
    pid = reading.stand_still()
    unlucky = run_of("x", token="unlucky")
    reading.read(unlucky)
    os.kill(pid, signal.SIGKILL)
    reading.result(unlucky)
    assert reading.pid != pid


def test_a_job_with_which_each_process_dies_fails_alone(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = reading.stand_still()
    deadly, after = (run_of("x", token=token) for token in ("deadly", "after"))
    spawn = child.spawn
    with monkeypatch.context() as patch:
        patch.setattr(child, "spawn", lambda _: spawn("no_such_module"))  # one that ends at once
        reading.read(deadly)
        os.kill(pid, signal.SIGKILL)
        came = reading.came()
    assert came.token == "deadly"
    assert isinstance(came.came, PoisonedJobError)
    assert "ended with exit status 1, each of 2 times" in str(came.came)
    reading.read(after)
    reading.result(after)


def test_a_job_that_nobody_wants_any_more_is_dropped_where_it_is(reading: Reading) -> None:
    reading.stand_still()
    running, waiting, after = (run_of("x", token=token) for token in ("running", "waiting", "after"))
    reading.read(running, waiting)
    eventually(lambda: reading.process._under_way == "running")
    reading.process.forget(["running", "waiting"])
    reading.read(after)
    reading.result(after)
    assert reading.told.empty()


def test_the_process_ends_with_its_worker(reading: Reading) -> None:
    first = run_of("x")
    reading.read(first)
    reading.result(first)
    process, pipe = reading.process._process, reading.process._pipe
    assert process is not None
    assert pipe is not None
    pipe.close()
    assert process.wait(60) == 0


def test_a_generation_request_is_read_there_too() -> None:
    told: queue.Queue[ReadElsewhere] = queue.Queue()
    process = ReadingProcess(replace(SIMULATED, kind="generation"), NOTHING, told.put)  # type: ignore[arg-type]
    process.start()
    data = json.dumps(["impetus_worker.jobs.generate", None, [{"prompt": "once"}], {}]).encode()
    process.read(ClaimedJob("g", "e", "generation", {b"data": data}, 0.0), urgent=True)
    assert told.get(timeout=60).came.prompt == "once"
    process.stop()
    assert process.join(60)
    assert EMBED_FUNCTION != "impetus_worker.jobs.generate"
