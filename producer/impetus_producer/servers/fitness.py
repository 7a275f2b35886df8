"""Whether a server is fit to hold queues: its mode and version, what it forgets, and what our user may do there.

Looks, and changes nothing. What may not be looked at is said to be unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..errors import ServerConfigurationError
from .rights import missing_rights
from .troubles import check_server, server_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis

_STATES = ("used_memory", "aof_last_write_status", "rdb_last_bgsave_status")
Role: TypeAlias = Literal["worker", "producer"]


class Level(StrEnum):
    REFUSE = "refuse"
    """Nothing works, or jobs would be lost for certain: do not begin."""
    WARN = "warn"
    """It works, and may lose what it was given."""
    NOTE = "note"
    """Good to know."""


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    sentence: str
    """What is so, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Fitness:
    """What was found, the worst first."""

    findings: tuple[Finding, ...]

    @property
    def refusal(self) -> str | None:
        """Why not to begin."""
        return next((finding.sentence for finding in self.findings if finding.level is Level.REFUSE), None)

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(finding.sentence for finding in self.findings if finding.level is Level.WARN)


def look(connection: Redis, role: Role = "worker") -> Fitness:
    """What there is to say of the server, before it is relied on by a worker or a producer.

    Raises a `ServerError` where it does not answer, or not yet.
    """
    try:
        greeting = check_server(connection)
    except ServerConfigurationError as error:
        return Fitness((Finding(Level.REFUSE, str(error)),))
    with server_errors():
        said = _configuration(connection)
        missing = missing_rights(connection, role)
    found = [*_replica(greeting), *_refusing(said), *_memory(said), *_persistence(said)]
    found += [Finding(Level.REFUSE if right.needed else Level.WARN, right.sentence) for right in missing]
    return Fitness(tuple(sorted(found, key=lambda finding: list(Level).index(finding.level))))


def _configuration(connection: Redis) -> Mapping[str, str | None]:
    """The settings of interest by the names of `CONFIG GET`, and `_STATES`, as far as they are told, else None."""
    from redis.exceptions import ResponseError

    names = ("maxmemory", "maxmemory-policy", "appendonly", "appendfsync", "save", "stop-writes-on-bgsave-error")
    with connection.pipeline(transaction=False) as pipeline:
        pipeline.info()
        for name in names:
            pipeline.config_get(name)
        info, *settings = pipeline.execute(raise_on_error=False)
    if isinstance(info, ResponseError):
        info = {}
    said = {name: _text(info.get(name)) for name in _STATES}
    for name, known in zip(names, ("maxmemory", "maxmemory_policy", "aof_enabled", "", "", ""), strict=True):
        said[name] = _text(info.get(known))
    for answer in settings:
        if not isinstance(answer, ResponseError):
            said |= {_text(key) or "": _text(value) for key, value in answer.items()}
    said["appendonly"] = {"1": "yes", "0": "no"}.get(said["appendonly"] or "", said["appendonly"])
    return said


def _replica(greeting: Mapping[str, str]) -> list[Finding]:
    if greeting.get("role") not in ("replica", "slave"):
        return []
    return [Finding(Level.WARN, "the server is a replica and takes no jobs: use the primary's URL")]


def _refusing(said: Mapping[str, str | None]) -> list[Finding]:
    """Why it takes nothing new now though it answers, which whoever only reads would not notice."""
    full = said["maxmemory-policy"] == "noeviction" and 0 < int(said["maxmemory"] or 0) < int(said["used_memory"] or 0)
    saves = said["save"] and said["stop-writes-on-bgsave-error"] == "yes"
    reasons = {
        "its memory is full: raise maxmemory, or delete keys": full,
        "it could not write its append-only file; its log says why, and a full disk is often it": (
            said["appendonly"] == "yes" and said["aof_last_write_status"] == "err"
        ),
        "it could not save its snapshot; its log says why, and a full disk is often it": (
            saves and said["rdb_last_bgsave_status"] == "err"
        ),
    }
    return [
        Finding(Level.WARN, f"the server takes neither jobs nor results for now: {reason}")
        for reason, is_so in reasons.items()
        if is_so
    ]


def _memory(said: Mapping[str, str | None]) -> list[Finding]:
    limit, policy = said["maxmemory"], said["maxmemory-policy"]
    if policy is None or limit is None:
        return [
            Finding(
                Level.NOTE,
                "whether the server forgets jobs when its memory is full is unknown, as it does not show its "
                "configuration: see that maxmemory-policy is noeviction",
            )
        ]
    if policy == "noeviction" or limit == "0":
        return []
    first = "leases and the records of workers first" if policy.startswith("volatile") else "any of them"
    return [
        Finding(
            Level.WARN,
            f"WAITING JOBS WILL VANISH IN SILENCE when the server's memory is full, tokens and leases too, {first}: "
            f"its maxmemory-policy is {policy}. Mend it: CONFIG SET maxmemory-policy noeviction, and the same in its "
            "configuration file",
        )
    ]


def _persistence(said: Mapping[str, str | None]) -> list[Finding]:
    appends, syncs, saves = said["appendonly"], said["appendfsync"], said["save"]
    if appends is None:
        return [
            Finding(
                Level.NOTE,
                "what the server keeps when it ends is unknown, as it does not show its configuration: "
                "appendonly yes keeps jobs",
            )
        ]
    if appends == "no":
        snapshots = f"but for snapshots ({saves})" if saves else "all of it"
        return [
            Finding(
                Level.WARN if not saves else Level.NOTE,
                f"what is in the server is lost when it ends, {snapshots}: CONFIG SET appendonly yes keeps jobs",
            )
        ]
    promises = {
        "always": "jobs survive the server and the machine: appendfsync is always",
        "everysec": "jobs of the last second may be lost when the machine ends: appendfsync is everysec, and always "
        "keeps those too",
        "no": "jobs of the last half minute may be lost when the machine ends: appendfsync is no, and everysec keeps "
        "all but a second's",
    }
    return [Finding(Level.NOTE, promises.get(syncs or "", "jobs survive the server's end: appendonly is yes"))]


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
