"""The courier's line to the server: kept between exchanges, and never believed where it came to an end."""

from __future__ import annotations

import hashlib
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from impetus_worker.leases.courier import Line
from impetus_worker.leases.scripts import Call, Script

from .lossy import lossy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

pytestmark = pytest.mark.system


def script(text: str) -> Script:
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


ECHO, BROKEN = script("return ARGV[1]"), script("return redis.call('GET')")


def say(text: str) -> Call[Any]:
    return Call(ECHO, [text], bytes.decode)


@pytest.fixture
def line(connection: Redis) -> Iterator[Line]:
    made = Line(connection)
    yield made
    made.release()


def test_calls_are_answered_in_their_order_and_one_that_is_refused_costs_the_others_nothing(line: Line) -> None:
    first, refused, last = line.exchange([say("first"), Call(BROKEN, [], bytes.decode), say("last")])
    assert (first, last) == ("first", "last")
    assert isinstance(refused, ResponseError)
    assert line.exchange([say("again")]) == ["again"]


def test_a_server_that_forgot_the_scripts_is_told_them_again(line: Line, connection: Redis) -> None:
    assert line.exchange([say("one")]) == ["one"]
    connection.script_flush()
    assert line.exchange([say("two"), say("three")]) == ["two", "three"]


def test_exchanges_share_one_connection(line: Line, connection: Redis) -> None:
    line.exchange([say("one")])
    before = connection.info("stats")["total_connections_received"]
    for _ in range(5):
        line.exchange([say("more")])
    assert connection.info("stats")["total_connections_received"] == before


def test_a_connection_that_the_server_closed_meanwhile_is_noticed_before_anything_is_sent(
    line: Line, connection: Redis
) -> None:
    line.exchange([say("before")])
    connection.client_kill_filter(_type="normal", skipme=True)
    assert line.exchange([say("after")]) == ["after"]


def test_a_lost_answer_is_an_error_and_is_no_answer_to_the_next_exchange(redis_url: str) -> None:
    client, lose = lossy(redis_url, retries=0)
    with closing(client):
        line = Line(client)
        line.exchange([say("known")])
        lose.append("unheard")
        with pytest.raises(RedisConnectionError):
            line.exchange([say("unheard"), say("neither")])
        assert line.exchange([say("next")]) == ["next"]
        line.release()
        pool: Any = client.connection_pool
        assert not pool._in_use_connections


def test_what_came_behind_an_answer_that_ended_the_exchange_is_no_answer_to_the_next(
    line: Line, connection: Redis
) -> None:
    loading = script("return redis.error_reply('LOADING the data set')")
    for known in (ECHO, loading):
        connection.script_load(known.text)
    with pytest.raises(RedisConnectionError):
        line.exchange([Call(loading, [], bytes.decode), say("behind")])
    assert line.exchange([say("next")]) == ["next"]
