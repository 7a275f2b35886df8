"""One policy for what goes wrong on the way to the server."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ReadOnlyError, ResponseError

from impetus_worker.companions.link import Link, Reachability, client, is_about_data
from impetus_worker.errors import ConfigurationError

if TYPE_CHECKING:
    from redis import Redis

AWAY = RedisConnectionError("it does not answer")


def link_to(url: str, reachability: Reachability, who: str = "one") -> Link:
    return Link(who, lambda: client(url, 5.0), reachability)


def test_who_fails_waits_longer_each_time_up_to_a_bound_and_begins_anew_after_an_answer() -> None:
    link = link_to("redis://localhost:1/0", Reachability())
    waits_s = [link.failed(AWAY) for _ in range(9)]
    assert waits_s == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    link.worked()
    assert link.failed(AWAY) == 0.1


def test_a_server_that_is_away_for_many_is_said_once_and_so_is_its_return(caplog: pytest.LogCaptureFixture) -> None:
    time_s = 0.0
    reachability = Reachability(lambda: time_s)
    one, two = (link_to("redis://localhost:1/0", reachability, who) for who in ("one", "two"))
    with caplog.at_level(logging.INFO):
        for link in (one, two, one):
            link.failed(AWAY)
        time_s = 10.0
        one.worked()
        assert len(caplog.messages) == 1
        two.worked()
        one.worked()
    assert caplog.messages == ["Redis: it does not answer; waiting for it", "Redis: it answers again"]


def test_what_no_waiting_mends_ends_the_worker_with_a_sentence() -> None:
    link = link_to("redis://localhost:1/0", Reachability())
    with pytest.raises(ConfigurationError, match="denies its user a right"):
        link.failed(NoPermissionError("NOPERM this user has no permissions"))


@pytest.mark.system
def test_a_server_that_changed_its_role_is_left_by_every_connection_of_the_worker(
    connection: Redis, redis_url: str
) -> None:
    reachability = Reachability()
    one, two = (link_to(redis_url, reachability, who) for who in ("one", "two"))
    before = [link.ask(lambda redis: redis.client_id()) for link in (one, two)]
    one.failed(ReadOnlyError("READONLY You can't write against a read only replica."))
    after = [link.ask(lambda redis: redis.client_id()) for link in (one, two)]
    assert not set(before) & set(after)
    one.failed(AWAY)
    assert two.ask(lambda redis: redis.client_id()) == after[1]
    for link in (one, two):
        link.close()


@pytest.mark.parametrize(
    ("said", "about_data"),
    [
        ("WRONGTYPE Operation against a key holding the wrong kind of value", True),
        ("hash value is not an integer", True),
        ("Command # 1 (HSET a b c) of pipeline caused error: WRONGTYPE Operation against a key", True),
        ("OOM command not allowed when used memory > 'maxmemory'.", False),
        ("MISCONF Redis is configured to save RDB snapshots", False),
        ("BUSY Redis is busy running a script", False),
        ("MISCONF Errors writing to the AOF file: Numerical result out of range", False),
        ("DB index is out of range", False),
        ("unknown command 'FROB', with args beginning with: 'WRONGTYPE' ", False),
        ("whatever a later version says", False),
    ],
)
def test_what_lies_in_redis_is_told_from_trouble_with_the_server(said: str, about_data: bool) -> None:
    assert is_about_data(ResponseError(said)) is about_data
