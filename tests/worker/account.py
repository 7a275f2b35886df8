"""Counts the jobs at a server: each must have ended exactly once, for a reason that is its own.

Reads Redis and runs `rq info`; knows nothing of how the jobs came there or what happened to the workers.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impetus_producer.contract import ROLE_QUEUES, VECTORS_FIELD

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis import Redis

QUEUES = [queue for queues in ROLE_QUEUES.values() for queue in queues]
POISON, HANG = "simulate:crash", "simulate:hang"
_OWN_REASONS = {"PoisonedJobError": POISON, "JobTimeoutError": HANG}
"""The only failures there may be, and the word in a text that brings each about."""
_RQ = Path(sys.executable).parent / "rq"
_EXAMPLES = 5


@dataclass
class Account:
    """How many jobs ended how, and every way in which that is not as promised."""

    accepted: int = 0
    finished: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    problems: dict[str, list[str]] = field(default_factory=dict)

    def wrong(self, what: str, which: object) -> None:
        self.problems.setdefault(what, []).append(str(which))

    def as_dict(self) -> dict[str, Any]:
        problems = {what: len(which) for what, which in self.problems.items()}
        return {"accepted": self.accepted, "finished": self.finished, "failed": dict(self.failed), "problems": problems}

    def __str__(self) -> str:
        lines = [f"{self.accepted} accepted: {self.finished} finished, {sum(self.failed.values())} failed"]
        lines += [f"  failed as {reason}: {count}" for reason, count in sorted(self.failed.items())]
        for what, which in self.problems.items():
            more = f" … and {len(which) - _EXAMPLES} more" if len(which) > _EXAMPLES else ""
            lines.append(f"WRONG: {what} ({len(which)}): {', '.join(which[:_EXAMPLES])}{more}")
        return "\n".join(lines)


def take_account(connection: Redis, acknowledged: Iterable[str], *, some_discarded: bool = False) -> Account:
    """Looks at every job in Redis, and at `acknowledged`, those whose enqueueing was confirmed, once all is quiet.

    A job whose confirmation was lost on its way counts like any other: it is in Redis, so it was accepted.
    `some_discarded`: somebody read results and deleted their jobs, so that workers count more than there are.
    """
    account = Account()
    ids = {key[len(b"rq:job:") :].decode() for key in connection.scan_iter("rq:job:*", count=1000)}
    ids = {job_id for job_id in ids if ":" not in job_id}
    account.accepted = len(ids | set(acknowledged))
    for job_id in set(acknowledged) - ids:
        account.wrong("lost: Redis no longer knows it", job_id)
    places = _places(connection, account)
    for job_id in sorted(ids):
        _check_job(connection, job_id, places, account)
    for job_id in set(places) - ids:
        account.wrong("in a registry, but no job", f"{job_id} in {places[job_id]}")
    for pattern in ("rq:execution:*", "rq:executions:*", "rq:worker:*:executions"):
        for key in connection.scan_iter(pattern, count=1000):
            account.wrong("left over from a run", key.decode())
    _check_rq_info(connection, account)
    _check_workers(connection, account, some_discarded)
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


def _check_job(connection: Redis, job_id: str, places: dict[str, list[str]], account: Account) -> None:
    fields: Any = connection.hgetall(f"rq:job:{job_id}")
    status, queue = fields.get(b"status", b"?").decode(), fields.get(b"origin", b"?").decode()
    here = places.get(job_id, [])
    if status not in ("finished", "failed"):
        account.wrong("not ended", f"{job_id} is {status}, in {here or 'no registry'}")
        return
    if here != [f"{status}:{queue}"]:
        account.wrong("not in the one registry of its status", f"{job_id} is {status}, in {here}")
    entries: Any = connection.xrange(f"rq:results:{job_id}")
    entries = [entry for _, entry in entries if entry[b"type"] in (b"1", b"2")]
    if len(entries) != 1:
        account.wrong("not one result", f"{job_id} is {status} with {len(entries)}")
        return
    request = _request_of(fields)
    if status == "finished":
        account.finished += 1
        if entries[0][b"type"] != b"1":
            account.wrong("finished, but its result is a failure", job_id)
        elif any(word in json.dumps(request) for word in _OWN_REASONS.values()):
            account.wrong("finished, though it cannot", job_id)
        elif (says := _wrong_result(request, entries[0])) is not None:
            account.wrong("a result that is not its own", f"{job_id}: {says}")
        return
    trace = zlib.decompress(base64.b64decode(entries[0].get(b"exc_string", b""))).decode()
    reason = trace.strip().splitlines()[-1].partition(":")[0].rpartition(".")[2]
    account.failed[reason] += 1
    if reason not in _OWN_REASONS or _OWN_REASONS[reason] not in json.dumps(request):
        account.wrong("failed, though it could have finished", f"{job_id}: {trace.strip()[-200:]}")


def _request_of(fields: dict[bytes, bytes]) -> dict[str, Any]:
    data = fields[b"data"]
    with suppress(zlib.error):
        data = zlib.decompress(data)
    request: dict[str, Any] = json.loads(data)[2][0]
    return request


def _wrong_result(request: dict[str, Any], entry: dict[bytes, bytes]) -> str | None:
    result = json.loads(base64.b64decode(entry[b"return_value"]))
    if "input" not in request:
        return None if result.get("text") else "no text"
    texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
    embeddings = result["embeddings"]
    shape = [len(texts), request.get("dimensions", 384)]
    size = len(entry.get(VECTORS_FIELD.encode()) or base64.b64decode(embeddings["data"]))
    if embeddings["shape"] != shape or size != 4 * shape[0] * shape[1]:
        return f"{embeddings['shape']} and {size} bytes for {shape}"
    return None


def _check_rq_info(connection: Redis, account: Account) -> None:
    """`rq info` against what is counted here."""
    address = connection.connection_pool.connection_kwargs
    url = f"redis://{address['host']}:{address['port']}/{address.get('db') or 0}"
    said = subprocess.run(
        [_RQ, "info", "--raw", "--only-queues", "--url", url], capture_output=True, text=True, check=False
    )
    if said.returncode:
        account.wrong("rq info failed", said.stderr.strip()[-300:])
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
        account.wrong("workers count more than ended", dict(sums))


def is_quiet(connection: Redis) -> bool:
    """Nothing waits and nothing runs."""
    with connection.pipeline(transaction=True) as pipeline:
        for queue in QUEUES:
            pipeline.llen(f"rq:queue:{queue}")
            pipeline.zcard(f"rq:wip:{queue}")
        return not any(pipeline.execute())
