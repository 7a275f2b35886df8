"""What a running generation writes for its readers, through real workers: streams, partial results, abandonment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from rq.command import send_stop_job_command
from rq.serializers import JSONSerializer

from impetus_producer import Producer, StreamRestartedError
from impetus_producer.cli.status import status
from impetus_producer.contract import (
    AWAITED_KEY,
    GENERATE_FUNCTION,
    STREAM_KEY,
    STREAM_TTL_S,
    GenerationResult,
    StreamEvent,
)
from impetus_producer.watching.fleet import read_fleet
from impetus_worker.leases.claims import Claims
from impetus_worker.leases.outcomes import Said
from impetus_worker.leases.relay import Relay
from tests.patience import eventually

if TYPE_CHECKING:
    from redis import Redis
    from rq.job import Job

    from impetus_producer import GenerationHandle

    from ..conftest import Fleet

pytestmark = pytest.mark.system
SLOW = ("--simulated-a-ms", "40")
ENDLESS: dict[str, Any] = {"ignore_eos": True, "max_tokens": 100_000}
"""What is still written however rarely it is looked."""


def ask(fleet: Fleet, prompt: str = "hello", queue: str = "generation", job_timeout: int = 60, **fields: Any) -> Job:
    request = {"prompt": prompt, **fields}
    return fleet.queue(queue).enqueue(GENERATE_FUNCTION, request, job_timeout=job_timeout)


def entries(fleet: Fleet, job: Job) -> list[dict[str, str]]:
    found: Any = fleet.connection.xrange(STREAM_KEY + job.id)
    return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in found]


def text_of(entries: list[dict[str, str]], run: str) -> str:
    return "".join(each.get("text", "") for each in entries if each["run"] == run)


def result_text(fleet: Fleet, job: Job) -> str:
    result: Any = fleet.job(job.id).return_value()
    return str(result["text"])


def test_a_stream_holds_the_whole_text_in_pieces_and_ends_and_expires(fleet: Fleet) -> None:
    fleet.start(roles="generation")
    job = ask(fleet, stream=True)
    fleet.await_status(job, "finished")
    said = entries(fleet, job)
    assert [each["event"] for each in said][:1] == ["start"]
    assert (said[-1]["event"], said[-1]["status"]) == ("end", "finished")
    assert len(said) > 4
    assert text_of(said, said[0]["run"]) == result_text(fleet, job)
    assert 0 < int(fleet.connection.ttl(STREAM_KEY + job.id)) <= STREAM_TTL_S


def test_a_stopped_generation_keeps_its_text_whether_it_was_streamed_or_not(fleet: Fleet) -> None:
    fleet.start(*SLOW, roles="generation")
    jobs = [ask(fleet, prompt, stream=stream, **ENDLESS) for prompt, stream in (("one", True), ("two", False))]
    fleet.await_status(jobs[1], "started")
    before = len(entries(fleet, jobs[0]))
    eventually(lambda: len(entries(fleet, jobs[0])) > before + 4)
    for job in jobs:
        send_stop_job_command(fleet.connection, job.id, serializer=JSONSerializer)
    for job in jobs:
        fleet.await_status(job, "stopped")
        end = entries(fleet, job)[-1]
        assert (end["event"], end["status"]) == ("end", "stopped")
        made = GenerationResult.model_validate(json.loads(end["result"]), strict=False)
        assert made.finish_reason == "cancelled"
        assert made.text.startswith("[simulated]")
        assert "stopped by its user" in fleet.reason(job)
    assert text_of(entries(fleet, jobs[0]), entries(fleet, jobs[0])[0]["run"]) != ""


def test_a_generation_past_its_timeout_fails_and_keeps_its_text(fleet: Fleet) -> None:
    fleet.start("--simulated-a-ms", "20", roles="generation")
    job = ask(fleet, job_timeout=3, **ENDLESS)
    fleet.await_status(job, "failed")
    assert "longer than its timeout of 3 s" in fleet.reason(job)
    end = entries(fleet, job)[-1]
    assert end["status"] == "failed"
    assert json.loads(end["result"])["usage"]["completion_tokens"] >= 5


def test_an_abandoned_generation_is_dropped_and_an_awaited_one_is_not(fleet: Fleet) -> None:
    fleet.start(*SLOW, roles="generation")
    fleet.connection.set(AWAITED_KEY + "awaited", 1)
    awaited = fleet.queue("generation").enqueue(
        GENERATE_FUNCTION, {"prompt": "hello", "cancel_if_abandoned": True}, job_id="awaited"
    )
    abandoned = ask(fleet, cancel_if_abandoned=True, **ENDLESS)
    fleet.await_status(abandoned, "stopped")
    assert "nobody waits for it" in fleet.reason(abandoned)
    fleet.await_status(awaited, "finished")


def test_a_generation_is_dropped_when_whoever_waited_goes_away_in_the_middle(fleet: Fleet) -> None:
    fleet.start("--simulated-a-ms", "1000", roles="generation")
    fleet.connection.set(AWAITED_KEY + "left", 1)
    job = fleet.queue("generation").enqueue(
        GENERATE_FUNCTION, {"prompt": "hello", "cancel_if_abandoned": True, "stream": True, **ENDLESS}, job_id="left"
    )
    eventually(lambda: len(entries(fleet, job)) > 1)
    fleet.connection.delete(AWAITED_KEY + "left")
    fleet.await_status(job, "stopped", limit_s=15)


@pytest.mark.parametrize("victim", ["engine", "worker"])
def test_a_run_after_a_death_is_another_run_in_the_stream(fleet: Fleet, victim: str) -> None:
    fleet.start("--simulated-a-ms", "20", roles="generation")
    job = ask(fleet, stream=True, ignore_eos=True)  # for five seconds
    eventually(lambda: len(entries(fleet, job)) > 4)
    pid = fleet.engine_pid("generation") if victim == "engine" else fleet.worker_pid("generation")
    os.kill(pid, signal.SIGKILL)
    fleet.await_status(job, "finished")
    said = entries(fleet, job)
    first, *others = [each["run"] for each in said if each["event"] == "start"]
    assert others
    assert first not in others
    assert text_of(said, others[-1]) == result_text(fleet, job)
    runs = [each["run"] for each in said]
    assert runs == sorted(runs, key=runs.index), "entries of an earlier run come after a later one's"


def test_nothing_is_written_for_a_run_that_counts_no_more(connection: Redis, redis_url: str) -> None:
    handle = Producer(redis_url).generate("hello")
    (job,) = Claims("w", 20).claim(["generation"], 1, 10**6).run(connection).jobs
    relay = Relay("w")
    relay.say(Said(job, StreamEvent.TEXT, "r", text="kept"))
    relay.relaying(0.0).run(connection)
    connection.hset("impetus:tokens:generation", job.id, "another w2")
    relay.say(Said(job, StreamEvent.TEXT, "r", at=4, text="lost"))
    relay.relaying(0.0).run(connection)
    assert connection.xlen(STREAM_KEY + handle.job_id) == 1


def test_pieces_that_wait_for_redis_go_together_and_are_sent_again_when_the_answer_is_lost(
    connection: Redis, redis_url: str
) -> None:
    handle = Producer(redis_url).generate("hello")
    (job,) = Claims("w", 20).claim(["generation"], 1, 10**6).run(connection).jobs
    relay = Relay("w")
    for at, text in ((0, "one "), (4, "two "), (8, "three")):
        relay.say(Said(job, StreamEvent.TEXT, "r", at=at, text=text))
    relay.relaying(0.0).run(connection)
    relay.recall()
    assert relay.has_news(0.0)
    relay.relaying(0.0).run(connection)
    relay.sent()
    assert not relay.has_news(0.0)
    found: Any = connection.xrange(STREAM_KEY + handle.job_id)
    assert [(fields[b"at"], fields[b"text"]) for _, fields in found] == [(b"0", b"one two three")] * 2


def test_status_tells_that_an_engine_died_and_was_started_again(fleet: Fleet) -> None:
    fleet.start(roles="generation")
    os.kill(fleet.engine_pid("generation"), signal.SIGKILL)
    seen = eventually(lambda: [each for each in read_fleet(fleet.connection).workers if each.engine_deaths])
    assert [each.engine_deaths for each in seen] == [1]
    eventually(lambda: read_fleet(fleet.connection).workers[0].serving)
    shown = CliRunner().invoke(status, ["--redis-url", fleet.url])
    assert "its engine died once and was started again" in shown.output


def test_readers_get_every_text_whole_though_engine_and_worker_are_killed_meanwhile(fleet: Fleet) -> None:
    fleet.start("--simulated-a-ms", "20", roles="generation")
    producer = Producer(fleet.url)
    # Each for five seconds, so that all are under way together.
    handles = [producer.generate(f"hello {number}", stream=True, seed=number, ignore_eos=True) for number in range(4)]
    keys = [STREAM_KEY + handle.job_id for handle in handles]
    with ThreadPoolExecutor(len(handles)) as readers:
        texts = [readers.submit(read_whole, handle) for handle in handles]
        for find in (fleet.engine_pid, fleet.worker_pid):
            eventually(lambda: all(int(fleet.connection.xlen(key)) > 4 for key in keys))
            os.kill(find("generation"), signal.SIGKILL)
        read = [text.result(60) for text in texts]
    assert [text for text, _ in read] == [handle.result(10).text for handle in handles]
    assert sum(restarts for _, restarts in read) > 0


def read_whole(handle: GenerationHandle) -> tuple[str, int]:
    """A job's text as its reader gets it, and how often it had to begin anew."""
    for restarts in count():
        with contextlib.suppress(StreamRestartedError):
            return "".join(handle.stream(60)), restarts
    raise AssertionError
