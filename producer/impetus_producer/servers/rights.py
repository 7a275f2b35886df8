"""What our user may do on a server, tried out without doing it.

A server checks rights when a command is queued in a transaction. So each is queued, and the transaction discarded:
this needs no right to look at rights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .. import contract
from ..enqueueing.scripts import CANCEL_SCRIPT, ENQUEUE_SCRIPT, WITHDRAW_SCRIPT, digest
from .answers import UNKNOWN_COMMAND, is_denied

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

_NAME = "impetus-probe"

#: What each command takes after its key, as far as it takes anything.
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "BLMOVE": (f"rq:queue:{_NAME}", "LEFT", "LEFT", 0.01),
    "EVALSHA": ("0" * 40, 0),
    "EXPIRE": (1,),
    "GETRANGE": (0, 0),
    "HDEL": ("f",),
    "HEXISTS": ("f",),
    "HGET": ("f",),
    "HINCRBY": ("f", 1),
    "HINCRBYFLOAT": ("f", 1),
    "HMGET": ("f",),
    "HSET": ("f", 1),
    "HSTRLEN": ("f",),
    "HSETNX": ("f", 1),
    "LPOS": ("e",),
    "LPUSH": ("e",),
    "LRANGE": (0, 0),
    "LREM": (0, "e"),
    "LTRIM": (0, 0),
    "PEXPIRE": (1,),
    "PUBLISH": (_NAME,),
    "RPUSH": ("e",),
    "SADD": ("m",),
    "SCAN": (0,),
    "SCRIPT|LOAD": ("return 1",),
    "SET": (1, "EX", 1),
    "SISMEMBER": ("m",),
    "SREM": ("m",),
    "XADD": ("*", "f", 1),
    "XREVRANGE": ("+", "-"),
    "ZADD": (1, "m"),
    "ZCOUNT": (0, 1),
    "ZRANGE": (0, 0),
    "ZRANGEBYSCORE": (0, 1),
    "ZREM": ("m",),
    "ZSCAN": (0,),
    "ZSCORE": ("m",),
}

#: Keys, `*` for a name, with the commands that each role uses on them; those that take no key first, `|` before a first
#: argument that alone is needed. A producer also publishes to the worker of a job that it cancels, and is content where
#: it may not: whoever may publish there can shut workers down.
_SCRIPTS = " ".join(f"EVALSHA|{digest(each)}" for each in (ENQUEUE_SCRIPT, CANCEL_SCRIPT, WITHDRAW_SCRIPT))
PRODUCER_RIGHTS: dict[str, str] = {
    "": f"{_SCRIPTS} SCRIPT|LOAD TIME",
    "rq:queues": "SADD SCARD SRANDMEMBER",
    "rq:queue:*": "RPUSH LPUSH LREM LLEN LRANGE",
    "rq:job:*": "HSETNX HSET HGET HMGET PERSIST DEL",
    "rq:results:*": "XREAD XREVRANGE EXISTS DEL",
    "rq:canceled:*": "ZADD",
    "rq:deferred:*": "ZREM",
    "rq:scheduled:*": "ZREM",
    "rq:ready:*": "ZREM",
    "rq:rl:*": "HGET ZADD ZCARD ZPOPMIN ZREM",
    "rq:finished:*": "ZREM ZCARD ZCOUNT",
    "rq:failed:*": "ZREM ZCARD ZCOUNT ZRANGE ZSCORE",
    "rq:wip:*": "ZCARD ZRANGE",
    "rq:suspended": "EXISTS",
    "rq:workers": "SCARD SRANDMEMBER",
    "rq:worker:*": "HMGET SCARD",
    f"{contract.AWAITED_KEY}*": "SET DEL",
    f"{contract.CANCEL_KEY}*": "SET DEL",
    f"{contract.BATCH_KEY}*": "GET SET DEL",
    f"{contract.STREAM_KEY}*": "XREAD XREVRANGE",
    f"{contract.WORKER_RECORD_KEY}*": "GETRANGE PTTL",
}
WORKER_RIGHTS: dict[str, str] = {
    "": "EVALSHA SCRIPT|LOAD TIME SCAN",
    "rq:queues": "SADD SREM SMEMBERS",
    "rq:queue:*": "BLMOVE LPUSH RPUSH LRANGE LINDEX LPOS LTRIM LREM LLEN",
    "rq:job:*": "HGETALL HGET HMGET HEXISTS HLEN HSTRLEN HSET HSETNX HDEL HINCRBY EXPIRE PEXPIREAT PERSIST DEL "
    "SCARD SMEMBERS SREM",
    "rq:results:*": "XADD EXPIRE PEXPIREAT DEL",
    "rq:wip:*": "ZADD ZREM ZSCORE ZCARD ZRANGEBYSCORE",
    "rq:finished:*": "ZADD ZREM ZRANGE ZRANGEBYSCORE ZSCORE",
    "rq:failed:*": "ZADD ZREM ZRANGEBYSCORE ZSCORE",
    "rq:scheduled:*": "ZADD ZREM ZRANGEBYSCORE ZSCAN ZSCORE",
    "rq:deferred:*": "ZADD ZREM ZRANGEBYSCORE ZSCORE",
    "rq:ready:*": "ZSCORE",
    "rq:canceled:*": "ZSCORE",
    "rq:executions:*": "EXISTS",
    "rq:rl:*": "ZSCORE",
    "rq:scheduler-lock:*": "SET EXISTS DEL",
    "rq:suspended": "EXISTS",
    "rq:workers": "SADD SREM SISMEMBER",
    "rq:workers:*": "SADD SREM SMEMBERS EXISTS",
    "rq:worker:*": "HSET HGET HGETALL HINCRBY HINCRBYFLOAT EXPIRE PEXPIRE SADD SREM DEL",
    "rq:pubsub:*": "SUBSCRIBE PUBLISH",
    f"{contract.AWAITED_KEY}*": "EXISTS DEL",
    f"{contract.CANCEL_KEY}*": "EXISTS DEL",
    f"{contract.STREAM_KEY}*": "XADD EXPIRE",
    f"{contract.WORKER_RECORD_KEY}*": "SET GET MGET PTTL DEL",
    "impetus:workers": "SADD SREM SCARD SMEMBERS SRANDMEMBER",
    "impetus:tokens:*": "HSET HGET HMGET HEXISTS HDEL",
    "impetus:leases:*": "ZADD ZREM ZSCORE ZRANGEBYSCORE",
    "impetus:deaths:*": "HINCRBY HGET HDEL",
    "impetus:recovery:*": "SET GET PTTL DEL",
    "impetus:strays:*": "ZADD ZREM ZRANGEBYSCORE",
}
_QUICKER = {"PUBLISH", "SUBSCRIBE"}
"""What works without these takes longer, and works."""
_READING = frozenset(
    (
        *("EXISTS", "GET", "GETRANGE", "HGET", "HGETALL", "HMGET", "PTTL", "SCARD", "SISMEMBER", "SMEMBERS"),
        *("SRANDMEMBER", "XREAD", "XREVRANGE", "ZCARD", "ZCOUNT", "ZRANGE", "ZSCORE"),
    )
)
"""Whoever uses only these on a key need not write it."""


@dataclass(frozen=True, slots=True)
class MissingRight:
    needed: bool
    """Whether anything works without it."""
    sentence: str


def missing_rights(connection: Redis, role: Literal["worker", "producer"]) -> list[MissingRight]:
    """Every command, key and channel that a role needs and our user may not use, or the server has not; each once."""
    from redis.exceptions import RedisError

    table = WORKER_RIGHTS if role == "worker" else PRODUCER_RIGHTS
    commands: dict[str, Exception] = {}
    keys: dict[str, list[str]] = {}
    # A connection of its own, which is closed: what was begun on it ends there, whatever happens. Nothing is sent a
    # second time either, as on a new connection it would be done.
    own: Any = connection
    with own.client() as client:
        line = client.connection
        try:
            begun = _try(line, "MULTI")
            if is_denied(begun):
                commands["MULTI"] = begun
            for command, pattern, words in _probes(table):
                answer = _try(line, *words)
                if not is_denied(answer):
                    continue
                if _is_of_command(answer):
                    commands[command] = answer
                else:
                    keys.setdefault(pattern, []).append(command)
        finally:
            line.disconnect()
    user = _user(connection) if commands or keys else ""
    if isinstance(begun, RedisError) and not is_denied(begun):
        raise begun
    return [
        *(MissingRight(name not in _QUICKER, _command_sentence(user, name, error)) for name, error in commands.items()),
        *(
            MissingRight(not _QUICKER & set(used), _key_sentence(user, key, used, table[key]))
            for key, used in keys.items()
        ),
    ]


def _probes(table: dict[str, str]) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """Commands, the pattern of the key or channel of each, and the words to send."""
    for pattern, names in table.items():
        key = pattern.replace("*", _NAME)
        for name in names.split():
            if name == "XREAD":
                yield name, pattern, (name, "COUNT", 1, "STREAMS", key, "0")
                continue
            command, *first = name.split("|")
            rest = _ARGUMENTS.get(name, ())
            if command == "EVALSHA" and first:  # whoever may run one script is denied another
                first, rest = [first[0].lower()], (0,)
            yield name, pattern, (command, *first, *([key] if key else []), *rest)


def _try(line: Any, *words: Any) -> Any:
    from redis.exceptions import ResponseError

    line.send_command(*words, check_health=False)
    try:
        return line.read_response()
    except ResponseError as error:
        return error


def _is_of_command(error: Exception) -> bool:
    return bool(re.search(r"run the '|to run ", str(error)) or UNKNOWN_COMMAND.match(str(error)))


def _user(connection: Redis) -> str:
    from redis.exceptions import ResponseError

    try:
        name: Any = connection.execute_command("ACL", "WHOAMI")  # type: ignore[no-untyped-call]
    except ResponseError:
        return "<user>"
    return name.decode() if isinstance(name, bytes) else str(name)


def _command_sentence(user: str, command: str, error: Exception) -> str:
    less = ", and jobs that run are stopped a little later without" if command in _QUICKER else ""
    if UNKNOWN_COMMAND.match(str(error)):
        return (
            f"the server does not know the command {command.replace('|', ' ')}{less}: it is too old, or the command "
            "was renamed or disabled in its configuration"
        )
    return (
        f"the server's user {user} may not use {command.replace('|', ' ')}{less}: ACL SETUSER {user} +{command.lower()}"
    )


def _key_sentence(user: str, pattern: str, commands: list[str], all_commands: str) -> str:
    if _QUICKER & set(commands):
        return (
            f"the server's user {user} may not use the channels {pattern} ({', '.join(commands)}), and jobs that run "
            f"are stopped a little later without: ACL SETUSER {user} &{pattern}"
        )
    used = ", ".join(commands)
    rule = "%R~" if _READING.issuperset(all_commands.split()) else "~"
    return f"the server's user {user} may not use the keys {pattern} ({used}): ACL SETUSER {user} {rule}{pattern}"
