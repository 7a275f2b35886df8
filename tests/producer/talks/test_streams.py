"""Reading a generation's text while it is made; the test plays the worker."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impetus_producer import (
    GenerationHandle,
    InvalidRequestError,
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    Producer,
    ResultTimeoutError,
    StreamRestartedError,
    line,
)
from impetus_producer.contract import ABANDONED_AFTER_S, AWAITED_KEY, GenerationResult
from impetus_producer.streams import Delta, StreamText
from impetus_producer.talks import steps

from ..stock_worker import fail, finish, generation_of
from .streaming import Reading, Writer

if TYPE_CHECKING:
    from redis import Redis

pytestmark = pytest.mark.system


@pytest.fixture
def handle(producer: Producer) -> GenerationHandle:
    return producer.generate("Say it.", stream=True)


@pytest.fixture
def writer(connection: Redis, handle: GenerationHandle) -> Writer:
    return Writer(connection, handle.job_id)


def test_pieces_come_as_they_are_made(handle: GenerationHandle, writer: Writer) -> None:
    reading = Reading(handle.stream)
    writer.start().write("Zü")
    reading.until("Zü")
    writer.write("rich, 日")
    reading.until("Zürich, 日")
    writer.write("本 🙂")
    writer.finish()
    assert reading.all() == ["Zü", "rich, 日", "本 🙂"]
    assert handle.result(0).text == "Zürich, 日本 🙂"


def test_a_late_reader_and_a_second_one_get_the_whole_text(handle: GenerationHandle, writer: Writer) -> None:
    writer.start().write("a", "b")
    first = Reading(handle.stream)
    first.until("ab")
    second = Reading(handle.stream)
    second.until("ab")
    writer.write("c").finish()
    assert "".join(first.all()) == "".join(second.all()) == "abc"
    assert "".join(handle.stream()) == "abc"


def test_an_entry_written_twice_is_read_once(handle: GenerationHandle, writer: Writer) -> None:
    writer.start().write("Zür", "ich")
    writer.add(0, "Zür")
    writer.add(2, "rich!")
    writer.text += "!"
    writer.start().write(" 🙂")
    writer.add(7, " 🙂")
    writer.finish()
    assert "".join(handle.stream()) == "Zürich! 🙂"


def test_a_restart_before_anything_was_read_goes_unnoticed(handle: GenerationHandle, writer: Writer) -> None:
    writer.start().write("the first run")
    Writer(writer.connection, handle.job_id, "run-2").start().write("the second").finish()
    assert "".join(handle.stream()) == "the second"


def test_a_restart_after_text_was_read_is_said_and_the_new_run_can_be_read(
    handle: GenerationHandle, writer: Writer
) -> None:
    reading = Reading(handle.stream)
    writer.start().write("the fir")
    reading.until("the fir")
    again = Writer(writer.connection, handle.job_id, "run-2").start().write("the sec")
    with pytest.raises(StreamRestartedError, match="begun anew"):
        reading.all()
    reading = Reading(handle.stream)
    reading.until("the sec")
    again.write("ond").finish()
    assert "".join(reading.all()) == "the second"


def test_what_a_worker_taken_for_dead_goes_on_writing_is_not_read(handle: GenerationHandle, writer: Writer) -> None:
    writer.start().write("one ")
    again = Writer(writer.connection, handle.job_id, "run-2").start().write("uno ")
    writer.write("two")
    reading = Reading(handle.stream)
    reading.until("uno ")
    writer.write("three")
    again.write("due").finish()
    assert "".join(reading.all()) == "uno due"


def test_a_worker_that_died_before_the_end_was_written_leaves_the_rest_to_the_result(
    handle: GenerationHandle, writer: Writer
) -> None:
    reading = Reading(handle.stream)
    writer.start().write("begun")
    reading.until("begun")
    writer.text += " and done"
    writer.finish(end=False)
    assert reading.all() == ["begun", " and done"]


def test_another_text_than_the_one_read_is_a_restart(handle: GenerationHandle, writer: Writer) -> None:
    reading = Reading(handle.stream)
    writer.start().write("begun")
    reading.until("begun")
    finish(writer.connection, handle.job_id, generation_of("something else"))
    with pytest.raises(StreamRestartedError):
        reading.all()
    assert "".join(handle.stream()) == "something else"


def test_a_stream_that_is_gone_and_a_job_that_asked_for_none_give_their_text_in_one_piece(
    producer: Producer, handle: GenerationHandle, writer: Writer
) -> None:
    writer.start().write("all ", "of it").finish()
    writer.connection.delete(writer.key)
    assert list(handle.stream()) == ["all of it"]
    quiet = producer.generate("x")
    reading = Reading(quiet.stream)
    finish(producer.connection, quiet.job_id, generation_of("quiet"))
    assert reading.all() == ["quiet"]
    empty = producer.generate("x")
    finish(producer.connection, empty.job_id, generation_of(""))
    assert list(empty.stream()) == []


def test_a_stream_that_lost_its_beginning_is_made_whole_by_the_result(handle: GenerationHandle, writer: Writer) -> None:
    writer.start().write("lost ")
    writer.connection.delete(writer.key)
    writer.write("kept ")
    reading = Reading(handle.stream)
    writer.write("end").finish()
    assert "".join(reading.all()) == "lost kept end"


def test_a_failed_job_gives_its_text_then_its_reason_and_what_it_had_made(
    handle: GenerationHandle, writer: Writer
) -> None:
    reading = Reading(handle.stream)
    writer.start().write("so far")
    reading.until("so far")
    writer.fail("the model failed")
    with pytest.raises(JobFailedError, match="the model failed") as failure:
        reading.all()
    assert failure.value.partial is not None
    assert failure.value.partial.text == "so far"
    with pytest.raises(JobFailedError) as failure:
        handle.result(1)
    assert failure.value.partial is not None


def test_a_stopped_job_keeps_what_it_had_made(handle: GenerationHandle, writer: Writer) -> None:
    writer.start().write("so ", "far")
    writer.stop()
    for ask in (lambda: handle.result(1), lambda: list(handle.stream())):
        with pytest.raises(JobCancelledError) as stopped:
            ask()
        assert stopped.value.partial is not None
        assert stopped.value.partial.text == "so far"
        assert stopped.value.partial.finish_reason == "cancelled"


def test_a_job_that_made_nothing_has_nothing_partial(producer: Producer, handle: GenerationHandle) -> None:
    fail(producer.connection, handle.job_id, "no")
    with pytest.raises(JobFailedError) as failure:
        list(handle.stream())
    assert failure.value.partial is None
    waiting = producer.generate("x", stream=True)
    assert waiting.cancel()
    with pytest.raises(JobCancelledError) as cancelled:
        list(waiting.stream())
    assert cancelled.value.partial is None


def test_a_stream_waits_no_longer_than_asked_and_calls_back_meanwhile(
    handle: GenerationHandle, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "LOOK_S", 0.01)
    writer.start().write("one")
    pieces = handle.stream(0.05)
    assert next(pieces) == "one"
    with pytest.raises(ResultTimeoutError, match=r"is started: no result within 0\.05 s"):
        next(pieces)

    class EnoughError(Exception):
        pass

    def enough() -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        list(handle.stream(on_wait=enough))
    handle.delete()
    with pytest.raises(JobNotFoundError):
        list(handle.stream())


def test_whoever_waits_says_so_and_says_it_again(
    producer: Producer, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "RENEW_S", 0.0)
    monkeypatch.setattr(line, "LOOK_S", 0.01)
    handle = producer.generate("x", cancel_if_abandoned=True, stream=True)
    key = f"{AWAITED_KEY}{handle.job_id}"
    assert 0 < int(connection.ttl(key)) <= ABANDONED_AFTER_S
    remade = producer.handle(handle.job_id)
    assert isinstance(remade, GenerationHandle)
    for waiting in (lambda: handle.result(0), lambda: remade.result(0), lambda: list(handle.stream(0))):
        connection.delete(key)
        with pytest.raises(ResultTimeoutError):
            waiting()
        assert 0 < int(connection.ttl(key)) <= ABANDONED_AFTER_S

    # A reader in the middle of a stream.
    writer = Writer(connection, handle.job_id).start().write("a")
    pieces = handle.stream()
    assert next(pieces) == "a"
    connection.delete(key)
    writer.write("b")
    assert next(pieces) == "b"
    assert connection.exists(key)
    handle.delete()
    assert not connection.exists(key, writer.key)


def test_a_job_that_did_not_ask_is_waited_for_in_silence(producer: Producer, connection: Redis) -> None:
    handle = producer.generate("x")
    with pytest.raises(ResultTimeoutError):
        handle.result(0)
    assert list(connection.scan_iter(f"{AWAITED_KEY}*")) == []


def test_everything_a_generation_may_be_asked_for_reaches_the_job(producer: Producer, connection: Redis) -> None:
    from rq.job import Job
    from rq.serializers import JSONSerializer

    options: dict[str, Any] = {
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "logprobs": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}},
        "stream": True,
        "cancel_if_abandoned": True,
    }
    handle = producer.generate("x", **options)
    assert Job.fetch(handle.job_id, connection, serializer=JSONSerializer).args[0] == {"prompt": "x"} | options
    with pytest.raises(InvalidRequestError, match="response_format"):
        producer.generate("x", response_format={"type": "yaml"})
    with pytest.raises(InvalidRequestError, match="min_p"):
        producer.generate("x", min_p=2)
    with pytest.raises(InvalidRequestError, match="'special_tokens' is about 'messages'"):
        producer.generate("x", special_tokens="text")
    talk: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "special_tokens": "text"}
    job = Job.fetch(producer.generate(**talk).job_id, connection, serializer=JSONSerializer)
    assert job.args[0] == talk


@given(data=st.data(), text=st.text(alphabet="aé日🙂", max_size=12))
def test_however_a_run_is_cut_and_repeated_its_text_is_read_once(data: st.DataObject, text: str) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    entries = [{b"event": b"start", b"run": b"r"}]
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        early = data.draw(st.integers(0, begin))
        entry = {b"event": b"text", b"run": b"r", b"at": str(early).encode(), b"text": text[early:end].encode()}
        entries += [entry] * data.draw(st.integers(1, 2))
    reader = StreamText("job")
    batches = data.draw(st.lists(st.integers(0, len(entries)), max_size=3).map(sorted))
    pieces: list[str] = []
    for begin, end in zip([0, *batches], [*batches, len(entries)], strict=True):
        pieces += [delta.text for delta in reader.read(entries[begin:end])]
    assert "".join(pieces) == text
    whole = GenerationResult.model_validate(generation_of(text + "!"), strict=False)
    assert reader.rest(whole) == [Delta("!")]


def test_the_partial_result_is_read_as_plain_json(connection: Redis, handle: GenerationHandle, writer: Writer) -> None:
    writer.start()
    result = json.dumps(generation_of("so") | {"logprobs": [{"token": "so", "logprob": -0.5}]})
    connection.xadd(writer.key, {"event": "end", "run": "run-1", "status": "failed", "result": result})
    fail(connection, handle.job_id, "no")
    with pytest.raises(JobFailedError) as failure:
        handle.result(1)
    assert failure.value.partial is not None
    assert failure.value.partial.logprobs is not None
    assert failure.value.partial.logprobs[0].token == "so"
