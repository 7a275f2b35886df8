"""The verdict itself: an account that overlooks a wrong result, a second ending or a lost job is worth nothing."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from scripts.proofs.faults.verdict import excuse_evicted, tracebacks

from impetus_producer import Producer
from impetus_producer.contract import VECTORS_FIELD

from .account import Account, fingerprint, take_account
from .expected import text_of, vectors_of, wrong_result
from .proxy import Proxy, _whole_commands

if TYPE_CHECKING:
    from redis import Redis

    from tests.conftest import RedisServer

REQUEST = {"input": ["a", "b", "c"], "dimensions": 16}


def entry(result: dict[str, Any], vectors: bytes | None = None) -> dict[bytes, bytes]:
    """As it lies in Redis."""
    made = {b"type": b"1", b"return_value": base64.b64encode(json.dumps(result).encode())}
    return made if vectors is None else made | {VECTORS_FIELD.encode(): vectors}


def test_vectors_in_another_order_are_not_a_jobs_own() -> None:
    right = vectors_of(REQUEST)
    result = {"embeddings": {"shape": [3, 16], "data": ""}}
    assert wrong_result(REQUEST, entry(result, right.tobytes())) is None
    assert wrong_result(REQUEST, entry(result, right[::-1].copy().tobytes())) == (
        "the vectors of texts [0, 2] are not theirs"
    )


@pytest.mark.parametrize(("shape", "size"), [([3, 16], 2), ([2, 16], 2), ([3, 8], 3)])
def test_vectors_of_another_shape_are_not_a_jobs_own(shape: list[int], size: int) -> None:
    assert wrong_result(REQUEST, entry({"embeddings": {"shape": shape, "data": ""}}, bytes(64 * size)))


def test_vectors_that_are_no_numbers_are_not_a_jobs_own() -> None:
    nothing = vectors_of(REQUEST) * float("nan")
    assert wrong_result(REQUEST, entry({"embeddings": {"shape": [3, 16], "data": ""}}, nothing.tobytes()))


def test_a_text_of_another_prompt_is_not_a_jobs_own() -> None:
    request = {"prompt": "a", "max_tokens": 10}
    assert wrong_result(request, entry({"text": text_of(request)})) is None
    assert wrong_result(request, entry({"text": text_of({"prompt": "b", "max_tokens": 10})}))


def finish(connection: Redis, job_id: str, request: dict[str, Any], times: int = 1) -> None:
    """As a worker does, or one that writes its ending more than once."""
    vectors = vectors_of(request)
    result = {"embeddings": {"shape": list(vectors.shape), "data": base64.b64encode(vectors.tobytes()).decode()}}
    connection.lrem("rq:queue:embedding", 0, job_id)
    connection.hset(f"rq:job:{job_id}", "status", "finished")
    connection.zadd("rq:finished:embedding", {job_id: 1})
    for _ in range(times):
        connection.xadd(f"rq:results:{job_id}", entry(result))  # type: ignore[arg-type]


@pytest.mark.system
def test_an_account_knows_the_four_sets(connection: Redis, redis_url: str) -> None:
    producer = Producer(redis_url)
    texts = ("ended", "twice", "lost", "gone", "recovered", "nobody's")
    requests = {text: {"input": [text]} for text in texts}
    ids = {text: producer.embed([text]).job_id for text in texts}
    for text in ("ended", "recovered", "nobody's"):
        finish(connection, ids[text], requests[text])
    finish(connection, ids["twice"], requests["twice"], times=2)
    connection.lrem("rq:queue:embedding", 0, ids["lost"])
    connection.lrem("rq:queue:embedding", 0, ids["gone"])
    connection.delete(f"rq:job:{ids['gone']}")
    acknowledged = {text: ids[text] for text in ("ended", "twice", "lost", "gone")}
    attempted = {fingerprint(requests[text]): acknowledged.get(text, "") for text in texts if text != "nobody's"}
    account = take_account(connection, acknowledged.values(), attempted=attempted)
    counts = account.as_dict()
    assert {name: counts[name] for name in ("lost", "duplicated", "unexpected", "recovered")} == {
        "lost": 2, "duplicated": 1, "unexpected": 1, "recovered": 2,
    }  # fmt: skip
    assert ids["twice"] in account.problems["duplicated: more than one ending"][0]
    assert account.problems["unexpected: nobody enqueued it"] == [ids["nobody's"]]
    producer.connection.close()


def test_what_a_server_evicted_is_its_own_doing_and_the_rest_is_not() -> None:
    account = Account()
    account.wrong("lost: Redis no longer knows it", "aa-1")
    account.wrong("lost: Redis no longer knows it", "bb-2")
    account.wrong("innocent, and failed", "aa-1: a reason")
    excuse_evicted(account, {"rq:job:aa-1"})
    assert account.problems == {"lost: Redis no longer knows it": ["bb-2"], "innocent, and failed": ["aa-1: a reason"]}
    assert account.excused == {"lost: Redis no longer knows it": ["aa-1"]}
    excuse_evicted(account, {"rq:queue:embedding"})
    assert account.problems == {"innocent, and failed": ["aa-1: a reason"]}


def test_tracebacks_are_found_by_their_last_lines() -> None:
    log = 'fine\nTraceback (most recent call last):\n  File "x", line 1\n    y\nValueError: no\nfine\n'
    assert tracebacks(log) == ["ValueError: no"]


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"*1\r\n$4\r\nPING\r\n", 1),
        (b"*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n", 2),
        (b"*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$1", None),
        (b"*1\r\n$9\r\nPING", None),
        (b"NG\r\n*1\r\n$4\r\nPING\r\n", 0),
    ],
)
def test_a_network_knows_where_commands_end(data: bytes, count: int | None) -> None:
    assert _whole_commands(data) == count


@pytest.mark.system
def test_a_network_passes_what_it_gets_whole(redis_server: RedisServer, connection: Redis) -> None:
    from redis import Redis

    network = Proxy(redis_server.port)
    with Redis.from_url(network.url) as client:
        client.set("a", 1_000_000 * "x")
        network.delay(0.05)
        assert client.get("a") == 1_000_000 * b"x"
    network.close()
