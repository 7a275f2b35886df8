"""How many Macs one Redis serves: simulated ones, each a real worker process with a real engine process.

Every Mac is started as the supervisor starts a worker (`impetus_worker work`, settings on standard input); only the
device is simulated: a batch takes a + b * padded tokens. The same backlog for each size, per Mac: docstrings of the
standard library in random order, 64 texts a job (K). Sizes grow by adding Macs to those that run. Counted are texts of
finished jobs, from a tenth to nine tenths of the backlog, so that neither the start nor the unequal ends count.

All of this shares one machine. The device's cost is therefore chosen so slow by default that the largest fleet fits the
cores of a small machine; "of linear" is against the smallest size times the number of Macs. What is left of the
cores is in the table, so that one sees whether Redis or the machine ends the line. What Redis itself can carry follows
from its CPU time for each text: it runs scripts on one core.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import click
from scripts.corpus import docstrings

from impetus_producer import Producer
from impetus_worker.settings import WorkerSettings

from ..means.report import Report, json_option, progress
from ..means.servers import (
    START_LIMIT_S,
    Rate,
    Server,
    await_true,
    cpu_of_processes,
    end,
    server,
    steady_rate,
    worker_processes,
)
from . import mixed as mixed_fleets
from . import one_mac

if TYPE_CHECKING:
    from collections.abc import Iterator

_TEXTS_A_JOB = 64
_FROM, _TO = 0.1, 0.9
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Mac:
    """The device that is simulated."""

    a_ms: float
    b_us: float
    batch_tokens: int


@dataclass(frozen=True, slots=True)
class Measured:
    macs: int
    rate: Rate
    redis_us: float
    """CPU of the server for each text, of which the enqueueing is no part."""
    worker_us: float | None
    engine_us: float | None


class Macs:
    """Grows to as many as asked; ends them all together."""

    def __init__(self, on: Server, mac: Mac) -> None:
        self._on, self._mac = on, mac
        self.processes: list[subprocess.Popen[bytes]] = []

    def grow(self, count: int) -> None:
        while len(self.processes) < count:
            self._start(len(self.processes))
        last, log = self.processes[-1], self._log(len(self.processes) - 1)
        await_true(lambda: int(self._on.connection.scard("rq:workers")) >= count, last, log, START_LIMIT_S + 2 * count)

    def _log(self, number: int) -> Path:
        return self._on.folder / f"mac-{number}.log"

    def _start(self, number: int) -> None:
        settings = WorkerSettings(
            redis_urls=(self._on.url,),
            role="embedding",
            name=f"mac-{number}",
            backend="simulated",
            max_batch_tokens=self._mac.batch_tokens,
            simulated_a_ms=self._mac.a_ms,
            simulated_b_us=self._mac.b_us,
        )
        with open(self._log(number), "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "impetus_worker", "work"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        assert process.stdin is not None
        process.stdin.write(settings.to_json().encode() + b"\n")
        process.stdin.flush()


@contextlib.contextmanager
def fleet(on: Server, mac: Mac) -> Iterator[Macs]:
    macs = Macs(on, mac)
    try:
        yield macs
    finally:
        end(macs.processes)


def measure(on: Server, count: int, texts: int, limit_s: float) -> Measured:
    connection = on.connection
    registry, bulk = "rq:finished:embedding-bulk", "rq:queue:embedding-bulk"
    jobs = max(1, texts // _TEXTS_A_JOB)
    workers, engines = worker_processes(on)
    # Nobody claims before all is enqueued.
    connection.set("rq:suspended", 1)
    time.sleep(1.5)
    shuffled = [docstring.text for docstring in docstrings()]
    random.Random(count).shuffle(shuffled)
    corpus = islice(cycle(shuffled), jobs * _TEXTS_A_JOB)
    for _ in Producer(connection=connection).embed_many(corpus, texts_per_job=_TEXTS_A_JOB, max_backlog_jobs=jobs + 64):
        pass
    before, cpu = int(connection.zcard(registry)), _cpu(on, workers, engines)
    connection.delete("rq:suspended")
    rate = steady_rate(
        lambda: int(connection.zcard(registry)) - before,
        jobs,
        from_share=_FROM,
        to_share=_TO,
        limit_s=limit_s,
        poll_s=0.05,
    )
    spent = [
        None if then is None or now is None else now - then
        for then, now in zip(cpu, _cpu(on, workers, engines), strict=True)
    ]
    done = max(1, (int(connection.zcard(registry)) - before) * _TEXTS_A_JOB)
    # What is left goes, and what the workers hold of it is waited for; the results are no longer needed either.
    connection.delete(bulk)
    await_idle(on, limit_s)
    for key in connection.scan_iter("rq:results:*", count=1000):
        connection.unlink(key)
    in_texts = Rate(rate.per_s * _TEXTS_A_JOB, rate.counted * _TEXTS_A_JOB, rate.seconds, rate.complete)
    redis_us, worker_us, engine_us = (None if each is None else 1e6 * each / done for each in spent)
    return Measured(count, in_texts, redis_us or 0.0, worker_us, engine_us)


def await_idle(on: Server, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while int(on.connection.zcard("rq:wip:embedding-bulk")) and time.monotonic() < deadline:
        time.sleep(0.1)


def _cpu(on: Server, workers: list[int], engines: list[int]) -> tuple[float | None, float | None, float | None]:
    return on.cpu_s(), cpu_of_processes(workers), cpu_of_processes(engines)


def resident_mb(pids: list[int]) -> float | None:
    """The memory that these processes hold on average, in MB; None where /proc does not tell."""
    try:
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    except (OSError, IndexError, ValueError):
        return None
    return sum(pages) * _PAGE_BYTES / 1e6 / max(1, len(pages))


@click.command("fleet")
@click.option("--sizes", default="1,4,16,64", show_default=True, help="How many Macs.")
@click.option("--texts", default=1600, show_default=True, help="Texts in the backlog for each Mac.")
@click.option("--most-texts", default=100_000, show_default=True, help="The largest backlog, whatever the size.")
@click.option("--seconds", default=45.0, show_default=True, help="The longest that one size may take.")
@click.option("--a-ms", default=4.0, show_default=True, help="What a batch costs a simulated Mac.")
@click.option("--b-us", default=250.0, show_default=True, help="What a padded token costs it.")
@click.option("--batch-tokens", default=1024, show_default=True, help="Its budget of padded tokens a batch.")
@click.option("--mixed", is_flag=True, help="Unequal Macs by a virtual clock instead: how long one backlog of about "
              "--seconds takes them, beside the best static assignment and the rule by rank.")  # fmt: skip
@json_option("fleet")
def command(
    sizes: str, texts: int, most_texts: int, seconds: float, a_ms: float, b_us: float, batch_tokens: int, mixed: bool,
    json_path: Path,
) -> None:  # fmt: skip
    """Texts/s of 1, 4, 16, 64 simulated Macs on one Redis, and Redis' CPU for each text."""
    counts = sorted({int(size) for size in sizes.split(",")})
    if mixed:
        report = Report("fleet --mixed", sizes=sizes, seconds=seconds)
        with server() as on:
            mixed_fleets.tell(report, [mixed_fleets.measure(on.connection, count, seconds) for count in counts])
        one_mac.tell(report, one_mac.measure())
        report.write(json_path)
        return
    report = Report("fleet", sizes=sizes, texts=texts, a_ms=a_ms, b_us=b_us, batch_tokens=batch_tokens)
    measured: list[Measured] = []
    held: tuple[float | None, float | None] = (None, None)
    with server() as on, fleet(on, Mac(a_ms, b_us, batch_tokens)) as macs:
        for count in counts:
            progress(f"starting {count - len(macs.processes)} more Macs")
            macs.grow(count)
            measured.append(measure(on, count, min(most_texts, count * texts), seconds))
            held = tuple(map(resident_mb, worker_processes(on)))  # type: ignore[assignment]  # two in, two out
            progress(f"{count} Macs: {measured[-1].rate.per_s:,.0f} texts/s")
    tell(report, measured, held)
    report.write(json_path)


def tell(report: Report, measured: list[Measured], held: tuple[float | None, float | None]) -> None:
    first = measured[0]
    rows = []
    for each in measured:
        of_linear = each.rate.per_s / first.rate.per_s * first.macs / each.macs
        cpu_us = [us for us in (each.redis_us, each.worker_us, each.engine_us) if us is not None]
        rows.append(
            {
                "Macs": each.macs,
                "texts/s": each.rate.per_s,
                "of linear": f"{of_linear:.0%}",
                "seconds counted": each.rate.seconds,
                "Redis us/text": each.redis_us,
                "worker us/text": each.worker_us,
                "engine us/text": each.engine_us,
                "cores in use": sum(cpu_us) * each.rate.per_s / 1e6,
            }
        )
    linear = [each for each, row in zip(measured, rows, strict=True) if float(str(row["of linear"])[:-1]) >= 90]
    last = measured[-1]
    notes = [
        f"linear (at least 90 %) up to {linear[-1].macs} Macs, {linear[-1].rate.per_s:,.0f} texts/s",
        f"Redis' one core would be full at {1e6 / last.redis_us:,.0f} texts/s, by its {last.redis_us:.0f} us a text: "
        f"that is {1e6 / last.redis_us / first.rate.per_s * first.macs:,.0f} Macs such as these",
        f"this machine has {os.cpu_count()} cores, for Redis, workers, engines and the bench alike",
        "the engine's CPU is what drawing random vectors costs",
    ]
    if held[0] is not None and held[1] is not None:
        notes.append(f"a worker process holds {held[0]:.0f} MB, its engine process {held[1]:.0f} MB")
    report.table("fleet", f"Texts a second of simulated Macs on one Redis, {_TEXTS_A_JOB} texts a job", rows, notes)
