"""What the queue itself costs, with a device that costs nothing (`--simulated-a-ms 0 --simulated-b-us 0`).

jobs/s: one text a job, 2 KB of base64 stored as each result, one worker process on TCP loopback. For every side alike:
its jobs are enqueued while no worker runs, the worker is started, and the rate is counted from when a twentieth of the
jobs have their results until all have: so start-up is left out. What is counted is results in Redis, polled by the
bench each 20 ms. Each side starts on an empty server. Slow sides get fewer jobs (the column says how many). The peers'
worker processes are the fastest they could be made (`peer_programs/queues.py`); Impetus is `impetus-worker run`, whose
simulated engine is a second process.

enqueue: `Producer.embed_many`, one text a job, against RQ's `Queue.enqueue_many` with RQ's JSON serializer, in this
process and with the same client. Impetus sends 32 jobs a round trip; RQ once 32 and once all in one.

round trips: while the worker works off a backlog, the server's slow log gives its scripts, and its command
statistics everything else that it sends. A batch is one call of the finish script.

memory: what the server's `used_memory` grew by for each vector of finished jobs of 64 texts, jobs and results kept.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rq import Queue
from rq.serializers import JSONSerializer
from scripts.corpus import docstrings

from impetus_producer import Producer
from impetus_producer.contract import EMBED_FUNCTION
from impetus_worker.leases.scripts import Script

from .means import peers
from .means.report import Report, json_option, median, progress, spread
from .means.servers import Rate, Server, await_true, child, server, steady_rate, worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from redis import Redis

ZERO_COST = ("--embedding-backend", "simulated", "--simulated-a-ms", "0", "--simulated-b-us", "0")
_FINISHED = "rq:finished:embedding-bulk"
_LIMIT_S = 30.0
_POLL_S = 0.02
_SLOW_US = 100
_ONLY_SENT = ("evalsha", "blmove", "exec", "zrangebyscore", "get", "set", "publish", "smembers")


@dataclass(frozen=True, slots=True)
class Peer:
    done: Callable[[Redis, int], int]
    """How many of so many jobs have their result stored."""
    share: float
    """Of the jobs that Impetus gets: slower sides need fewer for as many seconds."""


def _celery_done(connection: Redis, total: int) -> int:
    return len(connection.keys("celery-task-meta-*"))


PEERS = {
    "huey": Peer(lambda connection, total: connection.hlen("huey.results.bench"), 0.25),
    # A message leaves its list when its result is stored.
    "dramatiq": Peer(lambda connection, total: total - int(connection.hlen("dramatiq:default.msgs")), 0.25),
    "arq": Peer(lambda connection, total: total - int(connection.zcard("arq:queue")), 0.12),
    "celery": Peer(_celery_done, 0.08),
    "celery-batches": Peer(_celery_done, 0.1),
    "rq-simple": Peer(lambda connection, total: int(connection.zcard("rq:finished:bench")), 0.05),
}


def impetus_rate(on: Server, jobs: int) -> Rate:
    on.connection.flushall()
    fill(on, jobs)
    with worker(on, *ZERO_COST):
        return steady_rate(lambda: int(on.connection.zcard(_FINISHED)), jobs, limit_s=_LIMIT_S, poll_s=_POLL_S)


def peer_rate(on: Server, name: str, jobs: int) -> Rate:
    on.connection.flushall()
    program = [str(peers.python_of()), str(peers.PROGRAMS / "queues.py"), name]
    subprocess.run([*program, "enqueue", on.url, str(jobs)], check=True, stdin=subprocess.DEVNULL)
    log = on.folder / f"{name}.log"
    done = PEERS[name].done
    with child([*program, "work", on.url], log) as process:
        await_true(lambda: done(on.connection, jobs) > 0, process, log, _LIMIT_S)
        return steady_rate(lambda: done(on.connection, jobs), jobs, limit_s=_LIMIT_S, poll_s=_POLL_S)


def texts(count: int) -> list[str]:
    return [f"a short text that is number {number} of many" for number in range(count)]


def fill(on: Server, jobs: int) -> float:
    """Enqueues one-text jobs, with results that any client of RQ reads; returns the seconds it took."""
    producer = Producer(connection=on.connection)
    started = time.perf_counter()
    for _ in producer.embed_many(texts(jobs), texts_per_job=1, max_backlog_jobs=jobs + 64, encoding_format="base64"):
        pass
    return time.perf_counter() - started


def fill_with_rq(on: Server, jobs: int, part: int) -> float:
    """The same jobs by `Queue.enqueue_many`, `part` at a time; returns the seconds it took."""
    queue = Queue("embedding-bulk", connection=on.connection, serializer=JSONSerializer)
    many = texts(jobs)
    started = time.perf_counter()
    for start in range(0, jobs, part):
        queue.enqueue_many(
            [
                Queue.prepare_data(EMBED_FUNCTION, ({"input": text},), result_ttl=3600)
                for text in many[start : start + part]
            ]
        )
    return time.perf_counter() - started


def tell_rates(report: Report, on: Server, jobs: int, rounds: int, names: Sequence[str]) -> None:
    rates: dict[str, list[Rate]] = {"impetus": [], **{name: [] for name in names}}
    for number in range(rounds):
        for name in rates:
            rate = impetus_rate(on, jobs) if name == "impetus" else peer_rate(on, name, int(jobs * PEERS[name].share))
            rates[name].append(rate)
            progress(f"round {number + 1}: {name} {rate.per_s:,.0f} jobs/s" + ("" if rate.complete else " (cut short)"))
    medians = {name: median([rate.per_s for rate in each]) for name, each in rates.items()}
    rows = [
        {
            "side": name,
            "jobs/s": medians[name],
            "range": spread([rate.per_s for rate in each]),
            "jobs counted": sum(rate.counted for rate in each) // rounds,
            "impetus is": f"{medians['impetus'] / medians[name]:.2f}x",
        }
        for name, each in rates.items()
    ]
    fastest = max((name for name in names if name != "rq-simple"), key=lambda name: medians[name], default=None)
    notes = []
    if fastest:
        ratios = [mine.per_s / theirs.per_s for mine, theirs in zip(rates["impetus"], rates[fastest], strict=True)]
        notes.append(f"against the fastest peer, {fastest}: {median(ratios):.2f}x, {spread(ratios)} (asked: 3x)")
    if "rq-simple" in rates:
        notes.append(f"against RQ's SimpleWorker: {medians['impetus'] / medians['rq-simple']:.1f}x (asked: 20x)")
    report.table("jobs_per_s", "Jobs of one text a second, results stored, one worker, free device", rows, notes)


def tell_enqueue(report: Report, on: Server, jobs: int, rounds: int) -> None:
    ways: dict[str, Callable[[], float]] = {
        "Producer.embed_many": lambda: fill(on, jobs),
        "RQ enqueue_many, 32 a call": lambda: fill_with_rq(on, jobs // 4, 32) * 4,
        "RQ enqueue_many, one call": lambda: fill_with_rq(on, jobs // 4, jobs) * 4,
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            on.connection.flushall()
            rates[name].append(jobs / run())
    first = median(rates["Producer.embed_many"])
    rows = [
        {"way": name, "jobs/s": median(each), "range": spread(each), "embed_many is": f"{first / median(each):.2f}x"}
        for name, each in rates.items()
    ]
    report.table("enqueue_per_s", "Jobs of one text enqueued a second (asked: at least RQ's rate)", rows)


def tell_round_trips(report: Report, on: Server, jobs: int) -> None:
    on.connection.flushall()
    fill(on, jobs)
    scripts = {Script.named(name).sha: name for name in ("claim", "finish", "renew", "recover", "announce", "schedule")}
    with worker(on, *ZERO_COST):
        # From here on, with the worker at work, until the backlog is nearly gone. The commands that a script calls
        # are logged, and counted, like those that clients send: hence the care.
        on.connection.config_set("slowlog-max-len", 100_000)
        on.connection.config_set("slowlog-log-slower-than", _SLOW_US)
        on.connection.slowlog_reset()
        sent = -_sent(on)
        before = int(on.connection.zcard(_FINISHED))
        steady_rate(lambda: int(on.connection.zcard(_FINISHED)), jobs, to_share=0.9, limit_s=_LIMIT_S, poll_s=0.05)
        after = int(on.connection.zcard(_FINISHED))
        sent += _sent(on)
        on.connection.config_set("slowlog-log-slower-than", -1)
        entries: Any = on.connection.slowlog_get(100_000)
    calls: Counter[str] = Counter()
    micros: Counter[str] = Counter()
    for entry in entries:
        words = entry["command"].split()
        if words[0] == b"EVALSHA":
            name = scripts.get(words[1].decode(), "another script")
            calls[name] += 1
            micros[name] += entry["duration"]
    done, batches = max(1, after - before), max(1, calls["finish"])
    rows = [
        {"script": name, "calls": count, "a batch": count / batches, "us of Redis a job": micros[name] / done}
        for name, count in calls.most_common()
    ]
    notes = [
        f"{done} jobs in {batches} batches, {done / batches:.0f} a batch",
        f"claim and finish: {(calls['claim'] + calls['finish']) / batches:.2f} round trips a batch (asked: at most 3); "
        f"with peeks, heartbeats and chores: {sent / batches:.2f}",
        "a script's time is by the clock: on a busy machine it holds waits for a core",
    ]
    report.table("round_trips", "What the worker sends while it works off a backlog of one-text jobs", rows, notes)


def _sent(on: Server) -> int:
    """Round trips so far but for the bench's own: the commands that no script of ours calls, and transactions."""
    stats: Any = on.connection.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in _ONLY_SENT)


def tell_memory(report: Report, on: Server, vectors: int) -> None:
    on.connection.flushall()
    documents = [docstring.text for docstring in docstrings(vectors)]
    with worker(on, *ZERO_COST):
        before = on.used_bytes()
        handles = list(Producer(connection=on.connection).embed_many(documents, max_backlog_jobs=vectors))
        results = [handle.result(timeout_s=_LIMIT_S) for handle in handles]
        after = on.used_bytes()
        count = sum(len(result.vectors) for result in results)
        one = handles[0].job_id
        result_bytes, job_bytes = (
            int(on.connection.memory_usage(f"rq:{kind}:{one}", samples=0) or 0) for kind in ("results", "job")
        )  # fmt: skip
        width = len(results[0].vectors)
    rows = [
        {"what": "used_memory, jobs and results kept", "bytes a vector": (after - before) / count},
        {"what": "of it the result's stream", "bytes a vector": result_bytes / width},
        {"what": "of it the job's hash, texts compressed", "bytes a vector": job_bytes / width},
        {"what": "float32, as it is computed with", "bytes a vector": 384 * 4.0},
    ]
    notes = [
        f"{count} vectors of 384, {width} texts a job; asked: at most 2,500",
        "embed_many's own way: raw vectors beside the result. As base64 inside it, which RQ writes in base64 again, "
        "they would take 1536 * 16 / 9 = 2,731 by themselves",
    ]
    report.table("memory", "Memory of Redis for each finished vector", rows, notes)


@click.command("queue")
@click.option("--jobs", default=10_000, show_default=True, help="One-text jobs that Impetus gets in a round.")
@click.option("--rounds", default=3, show_default=True, help="How often each side runs.")
@click.option("--peers", "names", default=",".join(PEERS), show_default=True, metavar="NAMES", help="'' for none.")
@json_option("queue")
def command(jobs: int, rounds: int, names: str, json_path: Path) -> None:
    """Jobs/s with a free device against other queues; enqueueing, round trips, memory."""
    wanted = [name for name in names.split(",") if name]
    if unknown := [name for name in wanted if name not in PEERS]:
        raise click.BadParameter(f"no such peer: {', '.join(unknown)}")
    if wanted:
        peers.python_of()
    report = Report("queue", jobs=jobs, rounds=rounds, peers=names)
    with server() as on:
        tell_rates(report, on, jobs, rounds, wanted)
        tell_enqueue(report, on, jobs, rounds)
        tell_round_trips(report, on, jobs)
        tell_memory(report, on, 3200)
    report.write(json_path)
