"""Reaching a server, and one sentence for each of its troubles."""

from __future__ import annotations

import re
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ..errors import (
    ImpetusError,
    NoServerError,
    ServerConfigurationError,
    ServerDataError,
    ServerError,
    ServerFullError,
    ServerNotReadyError,
)
from .answers import (
    ACCESS,
    CERTIFICATE,
    CLUSTER,
    DATABASE,
    NO_PRIMARY,
    TLS,
    TLS_FILES,
    UNKNOWN_COMMAND,
    Trouble,
    code,
    is_denied,
    server_words,
    trouble,
)
from .connections import from_url, like
from .discovery import REDIS_URL_VARIABLE, find_redis_url
from .tls import advice

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

__all__ = ["Trouble", "adopt", "connect", "hang_up", "server_errors", "trouble"]

OLDEST_VERSION = (6, 2)
"""Of Redis, for BLMOVE. Any Valkey will do."""
_MAX_SAID_CHARACTERS = 300


def connect(redis_url: str | None = None) -> Redis:
    """A client for the server found by `find_redis_url`, which is there and can hold queues.

    Raises `NoServerError` or `ServerConfigurationError`. A server that is there but not ready yet is not waited for
    and no error: who uses it waits.
    """
    connection = client_for(redis_url)
    with suppress(ServerNotReadyError):
        check_server(connection)
    return connection


def client_for(redis_url: str | None) -> Redis:
    """As `connect`, without asking the server."""
    url = find_redis_url(redis_url)
    if url is None:
        raise NoServerError(
            "no Redis server is known: give its URL, set "
            f"{REDIS_URL_VARIABLE}, or start `impetus-worker run` on this machine, which brings one"
        )
    return from_url(url)


def adopt(connection: Any) -> Redis:
    """A client of our own for the server of a redis-py client that somebody else made, whatever its settings.

    Raises `ImpetusError` for what is no such client, and `ServerConfigurationError` where its server says that it
    cannot hold queues. A server that does not answer is waited for by who uses it.
    """
    own = like(connection)
    with suppress(NoServerError, ServerNotReadyError):
        check_server(own)
    return own


def check_server(connection: Redis) -> dict[str, str]:
    """What a server says of itself in its greeting: one round trip.

    Raises what is wrong with it; `ServerConfigurationError` if it can never hold queues.
    """
    from redis.exceptions import ResponseError

    ask: Any = connection.execute_command
    try:
        with server_errors():
            try:
                said = read_greeting(ask("HELLO"))
            except ResponseError as error:
                said = greeting_refused(error)
    except NoServerError as error:
        raise better_told(error, connection) from error
    check_greeting(said)
    return said


def better_told(error: NoServerError, connection: Redis | AsyncRedis) -> ServerError:
    """The error of a server that gave no answer, or what its port says when it is asked with TLS, or without."""
    said = None if CERTIFICATE.search(str(error)) else advice(connection)
    return error if said is None else ServerConfigurationError(said)


def check_greeting(said: Mapping[str, str]) -> None:
    """Raises `ServerConfigurationError` if a server that says so of itself can never hold queues."""
    mode, version = said.get("mode"), said.get("version", "")
    if mode == "cluster":
        raise ServerConfigurationError(
            "the Redis server runs in cluster mode, and queues need one server: use one with cluster-enabled no"
        )
    if mode == "sentinel":
        raise ServerConfigurationError(
            "this is a Sentinel, which holds no data: use the URL redis+sentinel://host:port/name-of-the-service"
        )
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if said.get("server") == "redis" and numbers and numbers < OLDEST_VERSION:
        raise ServerConfigurationError(
            f"the Redis server is version {version}, and BLMOVE needs 6.2: update it, or use Valkey"
        )


def read_greeting(flat: Any) -> dict[str, str]:
    """What the answer to HELLO says."""
    if isinstance(flat, dict):  # as RESP3 has it
        flat = [word for pair in flat.items() for word in pair]
    words = [each.decode() if isinstance(each, bytes) else str(each) for each in flat]
    return dict(zip(words[::2], words[1::2], strict=True))


def greeting_refused(error: Exception) -> dict[str, str]:
    """What is known of a server that does not answer HELLO; raises the error where that says something else."""
    from redis import exceptions

    if isinstance(error, exceptions.NoPermissionError):
        return {}
    if not is_denied(error):
        raise error
    return {"server": "redis", "version": "older than 6.0", "mode": "standalone"}


def hang_up(connection: Redis, *, in_use: bool = True) -> None:
    """Drops all connections of a client, also those that other threads wait on; each is made anew on its next use.

    A server that was demoted answers READONLY and keeps the line, so that after a failover behind one address a
    client would ask the wrong one for ever. Threads that wait on a line find it closed by the other side; without
    `in_use` they are left alone, and find out by themselves.
    """
    pool: Any = connection.connection_pool
    for each in list(getattr(pool, "_in_use_connections", ())) if in_use else ():
        line = getattr(each, "_sock", None)
        if isinstance(line, socket.socket):
            # The plain one's, also of TLS: whoever waits there may go on to use what TLS's own would take away.
            with suppress(OSError):
                socket.socket.shutdown(line, socket.SHUT_RDWR)
    pool.disconnect(inuse_connections=False)


@contextmanager
def server_errors(connection: Redis | None = None) -> Iterator[None]:
    """Turns whatever goes wrong with the server into an `ImpetusError` of one sentence that says what to do.

    `connection` drops the lines that nobody uses, among them the one that had the trouble, as the server at their
    other end may be the wrong one by now. Lines in use are left to their users: threads that hang up on each other,
    each because another did, would never end.
    """
    from redis import exceptions

    try:
        yield
    except (exceptions.RedisError, OSError) as error:
        ours = in_a_sentence(error)
        if connection is not None and is_of_the_line(ours):
            hang_up(connection, in_use=False)
        raise ours from error
    except KeyboardInterrupt:
        # The answer that nobody waits for any more would be taken for that to the next question.
        if connection is not None:
            hang_up(connection, in_use=False)
        raise


def is_of_the_line(error: ImpetusError) -> bool:
    """Whether the server at the other end may be the wrong one by now."""
    return not isinstance(error, ServerConfigurationError | ServerFullError | ServerDataError)


def in_a_sentence(error: Exception) -> ImpetusError:
    """What a server's trouble is, and what to do about it."""
    from redis import exceptions

    if isinstance(error, ImpetusError):
        return error
    said = " ".join(server_words(error).split()) or type(error).__name__
    said = said if len(said) <= _MAX_SAID_CHARACTERS else f"{said[:_MAX_SAID_CHARACTERS]}…"
    if trouble(error) is Trouble.CONFIGURATION:
        return ServerConfigurationError(_configuration_sentence(error, said))
    if trouble(error) is Trouble.DATA:
        return ServerDataError(f"the Redis server cannot do this with what lies there ({said}): waiting does not help")
    if code(error) == "OOM":
        return ServerFullError(
            "the Redis server is out of memory and takes no more jobs: raise its maxmemory, or wait until results "
            "are fetched or expire"
        )
    if code(error) == "LOADING":
        return ServerNotReadyError(f"the Redis server is not ready ({said}): wait until it has loaded its data")
    if code(error) in ("READONLY", "MASTERDOWN"):
        return ServerNotReadyError(
            f"the Redis server is a replica and takes no jobs ({said}): wait for the failover, or use the primary's URL"
        )
    if isinstance(error, exceptions.InvalidResponse):
        return NoServerError(f"what answers there is no Redis server ({said}): is the address right?")
    if "max number of clients" in said:
        return ServerNotReadyError(
            f"the Redis server has all the clients that it takes ({said}): raise its maxclients, or end some"
        )
    if NO_PRIMARY.match(said):
        return NoServerError(
            f"no Sentinel names a primary ({said}): is the service's name right, and is any server up?"
        )
    if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError | OSError):
        if CERTIFICATE.search(said):
            return NoServerError(
                f"the Redis server shows a certificate that is not to be trusted ({said}): name its authority in the "
                "URL (?ssl_ca_certs=FILE), or have it renewed"
            )
        if TLS.search(said):
            return NoServerError(
                f"no TLS with the Redis server ({said}): does it speak it at this port, and want a certificate of ours "
                "(?ssl_certfile=FILE&ssl_keyfile=FILE)?"
            )
        return NoServerError(f"the Redis server does not answer ({said}): is it running?")
    return ServerNotReadyError(f"the Redis server refuses for now ({said}): see its log, and try again")


def _configuration_sentence(error: Exception, said: str) -> str:
    from redis import exceptions

    if isinstance(error, exceptions.AskError | exceptions.ClusterCrossSlotError) or CLUSTER.search(said):
        return f"the Redis server runs in cluster mode ({said}), and queues need one server: use one without it"
    if isinstance(error, exceptions.NoPermissionError) or ACCESS.search(said):
        return (
            f"the Redis server denies its user a right ({said}): `impetus status` says what a producer lacks, "
            "`impetus-worker doctor` what a worker, and README.md has the rules of both"
        )
    if unknown := UNKNOWN_COMMAND.search(said):
        return (
            f"the Redis server does not know {_command_in(unknown[0])}: it is too old, or the command was renamed or "
            "disabled in its configuration"
        )
    if isinstance(error, exceptions.ConnectionError) and TLS_FILES.search(said):
        return f"the URL of the Redis server names files for TLS that cannot be used: {said}"
    if DATABASE.search(said):
        return f"the Redis server has no database of that number ({said}): use another one, or raise its `databases`"
    return f"the Redis server refused the user or password in its URL: {said}"


def _command_in(said: str) -> str:
    name = said.partition("'")[2].rstrip("'")
    return f"the command {name!r}" if name else "a command of our scripts"
