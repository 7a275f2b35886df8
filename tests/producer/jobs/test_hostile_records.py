"""What a broken or hostile writer left in Redis under a job's keys: one sentence, in bounded time and memory."""

from __future__ import annotations

import base64
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from impetus_producer import (
    EmbeddingHandle,
    GenerationHandle,
    ImpetusError,
    JobFailedError,
    JobNotFoundError,
    Producer,
    ServerDataError,
    UnreadableResultError,
)
from impetus_producer.cli.main import cli
from impetus_producer.contract import CANCEL_KEY, STREAM_KEY, VectorBlock
from impetus_producer.enqueueing import jobs

from ..stock_worker import embedding_of, fail, finish, generation_of
from ..talks.streaming import Writer
from .unreadable import TWO, UNREADABLE, encoded, end

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

pytestmark = pytest.mark.system


def deflated(text: bytes) -> bytes:
    return base64.b64encode(zlib.compress(text))


@pytest.fixture
def handle(producer: Producer) -> EmbeddingHandle:
    return producer.embed("a")


@pytest.fixture
def generation(producer: Producer) -> GenerationHandle:
    return producer.generate("Say it.", stream=True)


def run(url: str, *arguments: str) -> str:
    """What a command that fails says, which is one line."""
    result = CliRunner().invoke(cli, [*arguments, "--redis-url", url])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert len(line) < 1000
    return line


@pytest.mark.parametrize("fields", UNREADABLE.values(), ids=UNREADABLE)
def test_a_result_that_cannot_be_read_is_one_sentence_that_names_the_job(
    connection: Redis, redis_url: str, handle: EmbeddingHandle, fields: dict[str, Any]
) -> None:
    end(connection, handle.job_id, **fields)
    with pytest.raises(UnreadableResultError, match=f"the result of job {handle.job_id} cannot be read: "):
        handle.result(5)
    assert f"the result of job {handle.job_id} cannot be read: " in run(redis_url, "result", handle.job_id)


@pytest.mark.parametrize("fields", UNREADABLE.values(), ids=UNREADABLE)
def test_a_generations_result_that_cannot_be_read_ends_its_stream_with_that_sentence(
    connection: Redis, generation: GenerationHandle, fields: dict[str, Any]
) -> None:
    end(connection, generation.job_id, **fields)
    with pytest.raises(UnreadableResultError, match="cannot be read"):
        list(generation.stream(5))


def test_a_result_larger_than_any_is_not_read(
    connection: Redis, handle: EmbeddingHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MAX_RESULT_BYTES", 100)
    finish(connection, handle.job_id, embedding_of(["a"]))
    with pytest.raises(UnreadableResultError, match="larger than"):
        handle.result(5)


@pytest.mark.parametrize(
    "more",
    [{str(number): 1 for number in range(100_000)}, {"more_choices": [1] * 500_000}, {"logprobs": [{}] * 500_000}],
    ids=["fields", "choices", "logprobs"],
)
def test_a_result_with_faults_without_end_is_one_sentence_and_costs_no_more_than_reading_it(
    connection: Redis, generation: GenerationHandle, more: dict[str, Any]
) -> None:
    value = encoded(generation_of("a") | more)
    end(connection, generation.job_id, type=1, return_value=value)
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableResultError, match="not what the contract says"):
            generation.result(5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60_000_000


def test_vectors_are_exactly_what_their_shape_says() -> None:
    for data in (TWO, encoded(TWO).decode(), [[1.0, 2.0]]):
        assert [list(row) for row in VectorBlock(shape=(1, 2), data=data).rows()] == [[1, 2]]
        for shape in ((2, 1), (1, 1), (0, 2), (1, 3)):
            if shape == (2, 1) and not isinstance(data, list):
                continue  # as many bytes
            with pytest.raises(ValidationError):
                VectorBlock(shape=shape, data=data)


def test_numbers_too_large_for_float32_are_infinite_and_warn_of_nothing() -> None:
    (row,) = VectorBlock(shape=(1, 2), data=[[1e300, -1.0]]).rows()
    assert float(row[0]) > 1e38


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "exc_string",
    [b"!!", b"\xff\xfe", encoded(b"no zlib"), deflated(bytes(range(256)))[:40], deflated(b"\0" * 20_000_000)],
    ids=["no base64", "no ASCII", "no zlib", "cut short", "20 MB of nothing"],
)
def test_a_reason_that_cannot_be_read_is_a_failure_all_the_same(
    connection: Redis, redis_url: str, handle: EmbeddingHandle, exc_string: bytes
) -> None:
    end(connection, handle.job_id, "failed", type=2, exc_string=exc_string)
    with pytest.raises(JobFailedError, match="its reason cannot be read") as failed:
        handle.result(5)
    assert failed.value.job_id == handle.job_id
    assert "its reason cannot be read" in run(redis_url, "result", handle.job_id)


def test_of_a_reason_that_is_not_utf_8_the_rest_is_read(connection: Redis, handle: EmbeddingHandle) -> None:
    end(connection, handle.job_id, "failed", type=2, exc_string=deflated(b"x.RequestError: caf\xe9 closed"))
    with pytest.raises(JobFailedError, match="caf\ufffd closed") as failed:
        handle.result(5)
    assert failed.value.reason == "RequestError"


def test_a_reason_of_megabytes_is_shortened(connection: Redis, handle: EmbeddingHandle) -> None:
    end(connection, handle.job_id, "failed", type=2, exc_string=deflated(b"RequestError: " + b"x" * 1_000_000))
    with pytest.raises(JobFailedError, match=r"xxx…$") as failed:
        handle.result(5)
    assert len(str(failed.value)) <= jobs.MAX_REASON_CHARACTERS


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [
        {"event": b"\xff"},
        {"event": "text", "run": b"\xff", "at": 0, "text": "no"},
        {"event": "text", "run": "run-1", "at": "1" * 5000, "text": "no"},
        {"event": "text", "run": "run-1", "at": "soon", "text": "no"},
        {"event": "text", "run": "run-1", "at": "-1", "text": "no"},
        {"event": "text", "run": "run-1", "at": "²", "text": "no"},
        {"event": "text", "run": "run-1", "at": 5, "text": b"\xff"},
        {"event": "text", "run": "run-1", "at": 0, "text": "no", "channel": "1" * 5000},
        {"event": "text", "run": "run-1", "at": 0, "text": "no", "channel": "1" * 5000 + "/reasoning"},
        {"event": "text", "run": "run-1", "at": 0, "text": "no", "channel": "no channel"},
        {"event": "text", "run": "run-1", "at": 0, "text": "no", "channel": b"\xff"},
        {"event": "of a later version"},
        {"nothing": 1},
    ],
    ids=str,
)
def test_an_entry_of_a_stream_that_cannot_be_read_is_passed_over(
    connection: Redis, generation: GenerationHandle, entry: Any
) -> None:
    writer = Writer(connection, generation.job_id).start()
    writer.write("Hello")
    pieces = generation.stream(20)
    assert next(pieces) == "Hello"
    connection.xadd(writer.key, entry)
    writer.write(", you", "!").finish()
    assert "".join(pieces) == ", you!"


def test_a_key_of_another_type_in_the_place_of_the_stream_leaves_the_text_to_the_result(
    connection: Redis, generation: GenerationHandle
) -> None:
    connection.set(f"{STREAM_KEY}{generation.job_id}", "x")
    finish(connection, generation.job_id, generation_of("Hello"))
    assert "".join(generation.stream(20)) == "Hello"
    connection.delete(jobs.results_key(generation.job_id))
    fail(connection, generation.job_id, "it broke")
    with pytest.raises(JobFailedError, match="it broke") as failed:
        list(generation.stream(20))
    assert failed.value.partial is None


@pytest.mark.parametrize("result", [b"{", b"\xff", b"5", b"[" * 100_000, b'{"text": 1}'], ids=str)
def test_what_a_failed_job_had_made_is_left_out_where_it_cannot_be_read(
    connection: Redis, generation: GenerationHandle, result: bytes
) -> None:
    writer = Writer(connection, generation.job_id).start()
    written: Any = {"event": "end", "run": "run-1", "status": "failed", "result": result}
    connection.xadd(writer.key, written)
    fail(connection, generation.job_id, "it broke")
    with pytest.raises(JobFailedError, match="it broke") as failed:
        list(generation.stream(20))
    assert failed.value.partial is None


# -- keys of another type ----------------------------------------------------------------------------------------------


def test_a_key_of_another_type_in_the_place_of_a_result_is_not_waited_for(
    connection: Redis, redis_url: str, handle: EmbeddingHandle, generation: GenerationHandle
) -> None:
    for each in (handle, generation):
        connection.set(jobs.results_key(each.job_id), "x")
        with pytest.raises(UnreadableResultError, match=f"job {each.job_id} cannot be read: .*WRONGTYPE"):
            each.result()
        assert "cannot be read" in run(redis_url, "result", each.job_id)
    with pytest.raises(UnreadableResultError, match="WRONGTYPE"):
        list(generation.stream())


def test_a_key_of_another_type_in_the_place_of_a_job_is_not_waited_for(
    connection: Redis, redis_url: str, producer: Producer, handle: EmbeddingHandle
) -> None:
    connection.set(jobs.job_key(handle.job_id), "x")
    asked: list[Callable[[], Any]] = [handle.status, handle.cancel, lambda: producer.handle(handle.job_id)]
    for ask in asked:
        with pytest.raises(ServerDataError, match=f"^job {handle.job_id}: .*WRONGTYPE"):
            ask()
    with pytest.raises(UnreadableResultError, match="WRONGTYPE"):
        handle.result()
    for command in ("result", "cancel"):
        assert "WRONGTYPE" in run(redis_url, command, handle.job_id)
    finish_key = jobs.results_key(handle.job_id)
    connection.set(finish_key, "x")
    handle.delete()
    assert not connection.exists(finish_key, jobs.job_key(handle.job_id))


def test_a_queue_of_another_type_takes_no_jobs_and_says_so_at_once(connection: Redis, producer: Producer) -> None:
    connection.set("rq:queue:embedding", "x")
    with pytest.raises(ServerDataError, match="WRONGTYPE"):
        producer.embed("a")


def test_a_running_job_is_told_to_stop_though_a_key_of_another_type_lies_in_its_results_place(
    connection: Redis, handle: EmbeddingHandle
) -> None:
    connection.hset(jobs.job_key(handle.job_id), mapping={"status": "started", "worker_name": b"\xff"})
    connection.set(jobs.results_key(handle.job_id), "x")
    with pytest.raises(ImpetusError, match="was told to stop"):
        handle.cancel(timeout_s=0.05)
    assert connection.exists(f"{CANCEL_KEY}{handle.job_id}")


def test_words_of_a_job_that_are_not_utf_8_or_are_long_are_shown_as_far_as_they_go(
    connection: Redis, redis_url: str, handle: EmbeddingHandle
) -> None:
    connection.hset(jobs.job_key(handle.job_id), "status", b"\xff" + b"x" * 100_000)
    assert handle.status().startswith("\ufffdxxx")
    assert "is \ufffdxxx" in run(redis_url, "result", handle.job_id, "--timeout", "0")
    connection.hset(jobs.job_key(handle.job_id), "origin", b"\xff")
    finish_value = embedding_of(["a"])
    end(connection, handle.job_id, type=1, return_value=encoded(finish_value))
    assert CliRunner().invoke(cli, ["result", handle.job_id, "--redis-url", redis_url]).exit_code == 0
    handle.delete()
    assert not connection.exists(jobs.job_key(handle.job_id))


def test_an_id_that_is_no_text_is_no_job(producer: Producer) -> None:
    with pytest.raises(JobNotFoundError):
        producer.handle("\udcff")
