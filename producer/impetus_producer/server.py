"""Reaching the server: one client, and one sentence when it cannot be reached."""

from __future__ import annotations

import re
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

from .discovery import REDIS_URL_VARIABLE, find_redis_url
from .errors import NoServerError, ServerFullError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

_CONNECT_TIMEOUT_S = 5
_ANSWER_TIMEOUT_S = 30
_RETRIES = 3


def connect(redis_url: str | None = None) -> Redis:
    """A client for the server found by `find_redis_url`, which answers. Raises `NoServerError`."""
    url = find_redis_url(redis_url)
    if url is None:
        raise NoServerError(
            "no Redis server is known: give its URL, set "
            f"{REDIS_URL_VARIABLE}, or start `impetus-worker run` on this machine, which brings one"
        )
    from redis import Redis
    from redis.backoff import ExponentialBackoff
    from redis.retry import Retry

    try:
        connection = Redis.from_url(
            url,
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
            socket_timeout=_ANSWER_TIMEOUT_S,
            health_check_interval=_ANSWER_TIMEOUT_S,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), _RETRIES),
        )
    except ValueError:
        raise NoServerError(f"{without_password(url)!r} is no Redis URL such as redis://localhost:6379/0") from None
    with server_errors():
        connection.ping()
    return connection


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    return re.sub(r"(password=)[^&]*", r"\1***", re.sub(r"(://[^:/@]*:)[^/]*@", r"\1***@", url))


@contextmanager
def server_errors() -> Iterator[None]:
    """Turns redis-py's connection errors into one sentence that says what to do."""
    from redis import exceptions

    try:
        yield
    except exceptions.AuthenticationError as error:
        raise NoServerError(f"the Redis server refused the user or password in its URL: {error}") from error
    except exceptions.OutOfMemoryError as error:
        raise ServerFullError(
            "the Redis server is out of memory and takes no more jobs: raise its maxmemory, or wait until results "
            "are fetched or expire"
        ) from error
    except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
        raise NoServerError(f"the Redis server does not answer ({error}): is it running?") from error


class Trouble(StrEnum):
    PASSING = "passing"
    CONFIGURATION = "configuration"


def trouble(error: BaseException) -> Trouble:
    return Trouble.PASSING


def hang_up(connection: Redis) -> None:
    connection.connection_pool.disconnect()
