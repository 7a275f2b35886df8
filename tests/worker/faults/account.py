"""The verdict on a history of jobs: Jepsen's four sets, who failed innocently, and whether RQ's books are right.

    lost         acknowledged, and neither ended nor on a queue
    duplicated   ended twice, or enqueued twice by one call; a second run of a job is none
    unexpected   ended though nobody enqueued it, or with a result that is not what it must be
    recovered    never acknowledged, and there all the same: no fault of anybody's

Reads Redis and runs `rq info`; knows nothing of how the jobs came there or what happened to the workers.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner
from rq.cli.cli import main as rq_commands

from impetus_producer.contract import ROLE_QUEUES

from .expected import wrong_result

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from redis import Redis

QUEUES = [queue for queues in ROLE_QUEUES.values() for queue in queues]
POISON, HANG, BAD = "simulate:crash", "simulate:hang", "simulate:error"
_OWN_REASONS = {"PoisonedJobError": POISON, "JobTimeoutError": HANG, "InferenceError": BAD}
"""The only failures there may be, and the word in a text that brings each about."""
_LEFT_BY_RUNS = ("impetus:tokens:*", "impetus:leases:*", "impetus:deaths:*", "rq:worker:*:executions")
"""What the workers keep about jobs that run: when none does, there is nothing there."""
_EXAMPLES = 5


@dataclass
class Account:
    """How many jobs ended how, and every way in which that is not as promised."""

    accepted: int = 0
    finished: int = 0
    vanished: int = 0
    """Ended and, as they asked for, not kept."""
    recovered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    problems: dict[str, list[str]] = field(default_factory=dict)
    excused: dict[str, list[str]] = field(default_factory=dict)
    """What would be a problem, had not the server itself thrown away what it rests on."""

    def wrong(self, what: str, which: object) -> None:
        self.problems.setdefault(what, []).append(str(which))

    def count(self, word: str) -> int:
        """How many problems there are of those whose name begins so."""
        return sum(len(which) for what, which in self.problems.items() if what.startswith(word))

    def excuse(self, *words: str) -> None:
        """Moves problems whose names begin so to `excused`."""
        for what in [what for what in self.problems if what.startswith(words)]:
            self.excused.setdefault(what, []).extend(self.problems.pop(what))

    def as_dict(self) -> dict[str, Any]:
        return {
            "accepted": self.accepted,
            "finished": self.finished,
            "vanished": self.vanished,
            "failed": dict(self.failed),
            "lost": self.count("lost"),
            "duplicated": self.count("duplicated"),
            "unexpected": self.count("unexpected"),
            "recovered": self.recovered,
            "innocents_failed": self.count("innocent"),
            "innocents": self.problems.get("innocent, and failed", [])[:_EXAMPLES],
            "evicted_by_the_server": {what: len(which) for what, which in self.excused.items()},
            "problems": {what: len(which) for what, which in self.problems.items()},
        }

    def __str__(self) -> str:
        lines = [f"{self.accepted} accepted: {self.finished} finished, {sum(self.failed.values())} failed"]
        lines += [f"  failed as {reason}: {count}" for reason, count in sorted(self.failed.items())]
        sets = [f"{word} {self.count(word)}" for word in ("lost", "duplicated", "unexpected")]
        lines.append(f"{', '.join(sets)}, recovered {self.recovered}, innocents failed {self.count('innocent')}")
        for what, which in self.excused.items():
            lines.append(f"evicted by the server: {what} ({len(which)})")
        for what, which in self.problems.items():
            more = f" … and {len(which) - _EXAMPLES} more" if len(which) > _EXAMPLES else ""
            lines.append(f"WRONG: {what} ({len(which)}): {', '.join(which[:_EXAMPLES])}{more}")
        return "\n".join(lines)


def fingerprint(request: Mapping[str, Any]) -> str:
    """What a request asks for, whoever wrote it down."""
    texts = request.get("input")
    texts = [texts] if isinstance(texts, str) else texts
    return json.dumps([texts, *(request.get(name) for name in ("prompt", "max_tokens", "query", "documents"))])


def take_account(
    connection: Redis,
    acknowledged: Iterable[str],
    *,
    attempted: Mapping[str, str] | None = None,
    vanishing: Collection[str] = (),
    some_discarded: bool = False,
) -> Account:
    """Looks at every job in Redis, and at `acknowledged`, those whose enqueueing was confirmed, once all is quiet.

    `attempted`: every request that was sent, by its fingerprint (all differ), with the id that was acknowledged, or "";
    without it nothing is said about jobs that nobody enqueued. `vanishing`: those that are not kept once ended.
    `some_discarded`: somebody read results and deleted their jobs, so that workers count more than there are.
    """
    account = Account()
    acknowledged = set(acknowledged)
    ids = {key[len(b"rq:job:") :].decode() for key in connection.scan_iter("rq:job:*", count=1000)}
    ids = {job_id for job_id in ids if ":" not in job_id}
    account.accepted = len(ids | acknowledged)
    account.recovered = len(ids - acknowledged)
    for job_id in acknowledged - ids:
        if job_id in vanishing:
            account.vanished += 1
        else:
            account.wrong("lost: Redis no longer knows it", job_id)
    places = _places(connection, account)
    requests: Counter[str] = Counter()
    for job_id in sorted(ids):
        fields: Any = connection.hgetall(f"rq:job:{job_id}")
        _check_job(connection, job_id, fields, places.get(job_id, []), account)
        if attempted is not None:
            sent = fingerprint(_request_of(fields))
            requests[sent] += 1
            if sent not in attempted:
                account.wrong("unexpected: nobody enqueued it", job_id)
            elif requests[sent] > 1:
                account.wrong("duplicated: enqueued twice by one call", job_id)
            elif attempted[sent] not in ("", job_id):
                account.wrong("unexpected: another id was acknowledged", f"{job_id}, {attempted[sent]}")
    for job_id in set(places) - ids:
        account.wrong("in a registry, but no job", f"{job_id} in {places[job_id]}")
    for pattern in _LEFT_BY_RUNS:
        for key in connection.scan_iter(pattern, count=1000):
            account.wrong("left over from a run", key.decode())
    _check_rq_info(connection, account)
    _check_workers(connection, account, some_discarded or bool(vanishing))
    return account


def _places(connection: Redis, account: Account) -> dict[str, list[str]]:
    """Where each job is: `finished:embedding` and so on."""
    places: dict[str, list[str]] = {}
    for queue in QUEUES:
        waiting: Any = connection.lrange(f"rq:queue:{queue}", 0, -1)
        for job_id, count in Counter(waiting).items():
            places.setdefault(job_id.decode(), []).extend([f"queue:{queue}"] * count)
        for registry in ("wip", "finished", "failed", "deferred", "scheduled", "canceled"):
            members: Any = connection.zrange(f"rq:{registry}:{queue}", 0, -1)
            for member in members:
                job_id = member.decode().partition(":")[0] if registry == "wip" else member.decode()
                places.setdefault(job_id, []).append(f"{registry}:{queue}")
    return places


def _check_job(
    connection: Redis, job_id: str, fields: Mapping[bytes, bytes], here: list[str], account: Account
) -> None:
    status, queue = fields.get(b"status", b"?").decode(), fields.get(b"origin", b"?").decode()
    if status not in ("finished", "failed"):
        waits = status in ("queued", "deferred", "scheduled") and bool(here)
        what = "not ended, though there was time" if waits else "lost: neither ended nor on a queue"
        if status in ("stopped", "canceled"):
            what = "unexpected: withdrawn, and nobody asked for it"
        account.wrong(what, f"{job_id} is {status}, in {here or 'no registry'}")
        return
    if here != [f"{status}:{queue}"]:
        account.wrong("not in the one registry of its status", f"{job_id} is {status}, in {here}")
    entries: Any = connection.xrange(f"rq:results:{job_id}")
    entries = [entry for _, entry in entries if entry[b"type"] in (b"1", b"2")]
    if len(entries) != 1:
        word = "duplicated: more than one ending" if entries else "lost: ended, and without a result"
        account.wrong(word, f"{job_id} is {status} with {len(entries)}")
        return
    request = _request_of(fields)
    if status == "finished":
        account.finished += 1
        if entries[0][b"type"] != b"1":
            account.wrong("unexpected: finished, but its result is a failure", job_id)
        elif any(word in json.dumps(request) for word in _OWN_REASONS.values()):
            account.wrong("unexpected: finished, though it cannot", job_id)
        elif (says := wrong_result(request, entries[0])) is not None:
            account.wrong("unexpected: a result that is not its own", f"{job_id}: {says}")
        return
    trace = zlib.decompress(base64.b64decode(entries[0].get(b"exc_string", b""))).decode()
    reason = trace.strip().splitlines()[-1].partition(":")[0].rpartition(".")[2]
    account.failed[reason] += 1
    if reason not in _OWN_REASONS or _OWN_REASONS[reason] not in json.dumps(request):
        account.wrong("innocent, and failed", f"{job_id}: {trace.strip()[-200:]}")


def _request_of(fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """What a job asks for; nothing where its hash holds no call."""
    data = fields.get(b"data", b"[0, 0, [{}], 0]")
    with suppress(zlib.error):
        data = zlib.decompress(data)
    request: dict[str, Any] = json.loads(data)[2][0]
    return request


def _check_rq_info(connection: Redis, account: Account) -> None:
    """`rq info` against what is counted here."""
    address = connection.connection_pool.connection_kwargs
    url = f"redis://{address['host']}:{address['port']}/{address.get('db') or 0}"
    said = CliRunner().invoke(rq_commands, ["info", "--raw", "--only-queues", "--url", url])
    if said.exit_code:
        account.wrong("rq info failed", f"{said.output.strip()[-300:]} {said.exception!r}")
        return
    totals: Counter[str] = Counter()
    for counts in re.findall(r"^queue \S+ (\d+), (\d+) executing, (\d+) finished, (\d+) failed", said.stdout, re.M):
        totals.update(dict(zip(("waiting", "executing", "finished", "failed"), map(int, counts), strict=True)))
    counted = {"waiting": 0, "executing": 0, "finished": account.finished, "failed": sum(account.failed.values())}
    if dict(totals) != counted and not (not totals and not any(counted.values())):
        account.wrong("rq info counts otherwise", f"{dict(totals)} and not {counted}")


def _check_workers(connection: Redis, account: Account, some_discarded: bool) -> None:
    """Those that live are idle, and count no more than there was."""
    sums: Counter[str] = Counter()
    keys: Any = connection.smembers("rq:workers")
    for key in map(bytes.decode, keys):
        fields: Any = connection.hgetall(key)
        if fields and fields.get(b"state") != b"idle":
            account.wrong("a worker is not idle", f"{key} is {fields.get(b'state')}")
        for name in ("successful_job_count", "failed_job_count"):
            sums[name] += int(fields.get(name.encode(), 0))
        if not 0 <= float(fields.get(b"total_working_time", 0)) < 1e9:
            account.wrong("a worker's working time", f"{key}: {fields.get(b'total_working_time')}")
    if some_discarded:
        return
    if sums["successful_job_count"] > account.finished or sums["failed_job_count"] > sum(account.failed.values()):
        account.wrong("duplicated: workers count more than ended", dict(sums))


def is_quiet(connection: Redis) -> bool:
    """Nothing waits, nothing runs, and nothing is written down of what ran."""
    with connection.pipeline(transaction=True) as pipeline:
        for queue in QUEUES:
            pipeline.llen(f"rq:queue:{queue}")
            for registry in ("wip", "deferred", "scheduled"):
                pipeline.zcard(f"rq:{registry}:{queue}")
            pipeline.hlen(f"impetus:tokens:{queue}")
            pipeline.zcard(f"impetus:leases:{queue}")
        return not any(pipeline.execute())


def have_ended(connection: Redis, job_ids: Iterable[str]) -> bool:
    """Finished or failed, all of them, or no longer there."""
    with connection.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.hget(f"rq:job:{job_id}", "status")
        return all(status in (b"finished", b"failed", None) for status in pipeline.execute())
