"""What is read from the bytes of a job, and what is refused."""

from __future__ import annotations

import json
import pickle
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impetus_producer.contract import EMBED_FUNCTION, MAX_PAYLOAD_BYTES
from impetus_worker.allowed import Allowed
from impetus_worker.batches.reading.payload import LongPayloadError, read_payload
from impetus_worker.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable


def call(function: str = EMBED_FUNCTION, *args: object, **kwargs: object) -> dict[bytes, bytes]:
    return {b"data": zlib.compress(json.dumps([function, None, args, kwargs]).encode())}


def refusal(fields: dict[bytes, bytes]) -> str:
    with pytest.raises(InvalidRequestError) as refused:
        read_payload(fields, EMBED_FUNCTION)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_one_argument_is_the_request_whether_by_place_or_by_name() -> None:
    assert read_payload(call(EMBED_FUNCTION, {"input": "a"}), EMBED_FUNCTION) == {"input": "a"}
    assert read_payload(call(EMBED_FUNCTION, request={"input": "a"}), EMBED_FUNCTION) == {"input": "a"}


def test_data_that_was_not_deflated_is_read_as_it_stands() -> None:
    assert read_payload({b"data": json.dumps([EMBED_FUNCTION, None, [1], {}]).encode()}, EMBED_FUNCTION) == 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "data: the job carries none"),
        ({b"data": b"\x80\x81\xff"}, "not JSON"),
        ({b"data": zlib.compress(b"{broken")}, "not JSON"),
        ({b"data": zlib.compress(b"[" * 100_000)}, "not JSON"),
        ({b"data": zlib.compress(b"[1,2,3]")}, "not an RQ call"),
        (call("os.system", "true"), "names 'os.system'"),
        (call(EMBED_FUNCTION), "takes one JSON object"),
        (call(EMBED_FUNCTION, 1, 2), "takes one JSON object"),
        (call(EMBED_FUNCTION, 1, extra=2), "takes one JSON object"),
        ({b"data": zlib.compress(json.dumps([EMBED_FUNCTION, "an.instance", [1], {}]).encode())}, "this queue runs"),
    ],
)
def test_what_is_not_a_call_of_ours_is_refused_in_one_sentence(fields: dict[bytes, bytes], says: str) -> None:
    assert says in refusal(fields)


def test_a_pickle_is_refused_and_not_opened() -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("the pickle was opened",)

    assert "JSONSerializer" in refusal({b"data": zlib.compress(pickle.dumps((EMBED_FUNCTION, None, (Trap(),), {})))})


def test_a_small_payload_that_inflates_to_a_huge_one_is_refused() -> None:
    bomb = zlib.compress(b"[" + b" " * (MAX_PAYLOAD_BYTES + 10))
    assert len(bomb) < 100_000
    assert "larger than" in refusal({b"data": bomb})


@pytest.mark.parametrize(
    "data",
    [
        b"[" + b"[]," * 200_000 + b"[]]",
        b"[" + b'{"a":1},' * 100_000 + b"0]",
        b'["' + b'\\"' * 300_000 + b'",' + b"0," * 200_000 + b"0]",
    ],
)
def test_json_of_more_values_than_a_job_has_is_refused_before_it_is_made(data: bytes) -> None:
    assert "values that a job may carry" in refusal({b"data": zlib.compress(data)})


def test_a_string_that_never_ends_is_looked_at_once() -> None:
    assert "not JSON" in refusal({b"data": zlib.compress(b'["' + b'\\",' * 3_000_000)})


def test_brackets_and_commas_in_a_text_are_no_values() -> None:
    text = '[{"a": 1, "b": [2, 3]}], \\' * 50_000
    assert read_payload(call(EMBED_FUNCTION, {"input": text}), EMBED_FUNCTION) == {"input": text}


@pytest.mark.parametrize("deflate", [zlib.compress, bytes])
def test_what_is_longer_than_the_caller_reads_is_not_looked_at(deflate: Callable[[bytes], bytes]) -> None:
    data = json.dumps([EMBED_FUNCTION, None, [{"input": "x" * 1000}], {}]).encode()
    read_payload({b"data": deflate(data)}, EMBED_FUNCTION, most_bytes=len(data))
    with pytest.raises(LongPayloadError):
        read_payload({b"data": deflate(data)}, EMBED_FUNCTION, most_bytes=len(data) - 1)


def test_a_callback_is_refused_unless_the_worker_was_told_its_name() -> None:
    fields = {**call(EMBED_FUNCTION, 1), b"success_callback_name": b"os.remove"}
    assert "--allow-callbacks" in refusal(fields)
    assert read_payload(fields, EMBED_FUNCTION, Allowed(callbacks={"os.remove"})) == 1


@given(st.dictionaries(st.sampled_from([b"data", b"status", b"failure_callback_name", b"timeout"]), st.binary()))
def test_arbitrary_bytes_are_read_or_refused_and_nothing_else(fields: dict[bytes, bytes]) -> None:
    try:
        read_payload(fields, EMBED_FUNCTION)
    except InvalidRequestError as error:
        assert str(error)  # noqa: PT017 - either outcome is right
