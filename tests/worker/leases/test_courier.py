"""The courier's line to the server: kept between exchanges, and never believed where it came to an end."""

from __future__ import annotations

import hashlib
import queue
import socket
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from impetus_worker.companions.link import Link, Reachability, client
from impetus_worker.inbox import Answered, Unanswered
from impetus_worker.leases.courier import Courier, Line
from impetus_worker.leases.scripts import Call, Script
from tests.patience import LIMIT_S

from .lossy import lossy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis

pytestmark = pytest.mark.system


def script(text: str) -> Script:
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


ECHO, BROKEN = script("return ARGV[1]"), script("return redis.call('GET')")


def say(text: str) -> Call[Any]:
    return Call(ECHO, [text], bytes.decode)


def exchange(line: Line, calls: Sequence[Call[Any]]) -> list[Any]:
    line.send(calls)
    return line.receive()


@pytest.fixture
def line(connection: Redis) -> Iterator[Line]:
    made = Line(connection)
    yield made
    made.release()


def test_calls_are_answered_in_their_order_and_one_that_is_refused_costs_the_others_nothing(line: Line) -> None:
    first, refused, last = exchange(line, [say("first"), Call(BROKEN, [], bytes.decode), say("last")])
    assert (first, last) == ("first", "last")
    assert isinstance(refused, ResponseError)
    assert exchange(line, [say("again")]) == ["again"]


def test_a_server_that_forgot_the_scripts_is_told_them_again(line: Line, connection: Redis) -> None:
    assert exchange(line, [say("one")]) == ["one"]
    connection.script_flush()
    assert exchange(line, [say("two"), say("three")]) == ["two", "three"]


def test_scripts_that_are_forgotten_between_exchanges_are_run_all_the_same_and_each_is_answered_its_own(
    line: Line, connection: Redis
) -> None:
    connection.script_flush()
    line.send([say("one"), say("two")])
    line.send([say("three")])
    assert [line.receive(), line.receive()] == [["one", "two"], ["three"]]
    assert line.awaited == 0


def test_exchanges_share_one_connection(line: Line, connection: Redis) -> None:
    exchange(line, [say("one")])
    before = connection.info("stats")["total_connections_received"]
    for _ in range(5):
        exchange(line, [say("more")])
    assert connection.info("stats")["total_connections_received"] == before


def test_a_connection_that_the_server_closed_meanwhile_is_noticed_before_anything_is_sent(
    line: Line, connection: Redis
) -> None:
    exchange(line, [say("before")])
    connection.client_kill_filter(_type="normal", skipme=True)
    assert exchange(line, [say("after")]) == ["after"]


def test_a_lost_answer_is_an_error_and_is_no_answer_to_the_next_exchange(redis_url: str) -> None:
    client, lose = lossy(redis_url, retries=0)
    with closing(client):
        line = Line(client)
        exchange(line, [say("known")])
        lose.append("unheard")
        with pytest.raises(RedisConnectionError):
            exchange(line, [say("unheard"), say("neither")])
        line.hang_up()
        assert exchange(line, [say("next")]) == ["next"]
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
        exchange(line, [Call(loading, [], bytes.decode), say("behind")])
    line.hang_up()
    assert exchange(line, [say("next")]) == ["next"]


class Server:
    """Answers nothing before it is told to."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listening.getsockname()[1]}?protocol=2"
        self._line: socket.socket | None = None

    def hears(self, text: bytes) -> None:
        """Returns once it was sent."""
        if self._line is None:
            self._line, _ = self._listening.accept()
        heard = b""
        while text not in heard:
            heard += self._line.recv(65536)
            for _ in range(heard.count(b"CLIENT")):  # redis-py says who it is
                self._line.sendall(b"+OK\r\n")
            if b"CLIENT" in heard:
                heard = b""

    def says(self, answer: bytes) -> None:
        assert self._line is not None
        self._line.sendall(answer)

    def close(self) -> None:
        self._listening.close()
        if self._line is not None:
            self._line.close()


def under_way(courier: Courier, server: Server, *texts: str) -> None:
    """Sends an exchange for each text, all of which the server then has, and has not answered."""
    for text in texts:
        courier.send([say(text)])
        server.hears(text.encode())


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def told(server: Server) -> Iterator[tuple[Courier, queue.SimpleQueue[Any]]]:
    """A courier to that server, and what it tells."""
    facts: queue.SimpleQueue[Any] = queue.SimpleQueue()
    courier = Courier(Link("courier", lambda: client(server.url, LIMIT_S), Reachability()), facts.put)
    courier.start()
    yield courier, facts
    courier.stop()
    assert courier.join(LIMIT_S)


def test_the_next_exchange_goes_out_before_the_last_is_answered(
    server: Server, told: tuple[Courier, queue.SimpleQueue[Any]]
) -> None:
    courier, facts = told
    under_way(courier, server, "first", "second")
    server.says(b"$1\r\n1\r\n$1\r\n2\r\n")
    assert [facts.get(timeout=LIMIT_S) for _ in range(2)] == [Answered(["1"]), Answered(["2"])]


def test_of_all_that_was_on_its_way_when_the_connection_was_lost_it_is_said(
    server: Server, told: tuple[Courier, queue.SimpleQueue[Any]]
) -> None:
    courier, facts = told
    under_way(courier, server, "first", "second")
    server.says(b"$1\r\n1\r\n")
    assert facts.get(timeout=LIMIT_S) == Answered(["1"])
    under_way(courier, server, "third")
    server.close()
    assert [type(facts.get(timeout=LIMIT_S)) for _ in range(2)] == [Unanswered, Unanswered]


def test_what_is_behind_a_refusal_is_heard_before_the_connection_is_given_up(
    server: Server, told: tuple[Courier, queue.SimpleQueue[Any]]
) -> None:
    courier, facts = told
    under_way(courier, server, "first", "second")
    server.says(b"-OOM there is no room\r\n$1\r\n2\r\n")
    (refusal,) = facts.get(timeout=LIMIT_S).answers
    assert isinstance(refusal, ResponseError)
    assert facts.get(timeout=LIMIT_S) == Answered(["2"])


def test_a_line_that_was_idle_while_another_of_the_worker_was_lost_is_made_anew_before_it_is_used(
    connection: Redis, redis_url: str
) -> None:
    facts: queue.SimpleQueue[Any] = queue.SimpleQueue()
    reachability = Reachability()
    named = f"{redis_url}?client_name=courier-in-doubt"
    courier = Courier(Link("courier", lambda: client(named, LIMIT_S), reachability), facts.put)
    courier.start()
    try:
        seen = []
        for trouble in (False, False, True, False):
            if trouble:
                reachability.lost("another", RedisConnectionError("it fell silent"))
            courier.send([say("here")])
            assert facts.get(timeout=LIMIT_S) == Answered(["here"])
            clients: Any = connection.client_list()
            seen.append(max(int(each["id"]) for each in clients if each["name"] == "courier-in-doubt"))
    finally:
        courier.stop()
        assert courier.join(LIMIT_S)
    assert seen[0] == seen[1] != seen[2] == seen[3]


def test_a_courier_that_is_stopped_brings_what_is_on_its_way_first(
    server: Server, told: tuple[Courier, queue.SimpleQueue[Any]]
) -> None:
    courier, facts = told
    courier.send([say("first")])
    server.hears(b"first")
    courier.stop()
    server.says(b"$1\r\n1\r\n")
    assert facts.get(timeout=LIMIT_S) == Answered(["1"])
    assert courier.join(LIMIT_S)
