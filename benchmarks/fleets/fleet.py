"""How many Macs one Redis serves: simulated ones, each a real worker process with a real engine process.

Every Mac is started as the supervisor starts a worker (`impetus_worker.host.worker_process`, settings on standard
input); only the device is simulated: a batch takes a + b * padded tokens. The same backlog for each size, per Mac:
docstrings of the standard library in random order, 64 texts a job (K). Each size has a server of its own. Counted are
the tokens that the engines are given, from a tenth to nine tenths of the backlog, so that neither the start nor the
unequal ends count; texts a second are as many as have so many tokens on average. Jobs that end are no measure:
thousands of texts are sorted into one plan of batches, by length, and most of its jobs end towards its end. With
`--against` each size is also measured with the workers of another checkout, right after those of this one.

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
from itertools import cycle, islice, product
from pathlib import Path
from typing import TYPE_CHECKING

import click
from scripts.corpus import docstrings

from impetus_producer import Producer
from impetus_worker.settings import WorkerSettings

from ..means.peers import ROOT
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
from .made import tokens_given, tokens_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_TEXTS_A_JOB = 64
_FROM, _TO = 0.1, 0.9
_POLL_S = 0.1
_THIS = "this"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Mac:
    """The device that is simulated."""

    a_ms: float
    b_us: float
    batch_tokens: int


@dataclass(frozen=True, slots=True)
class Measured:
    build: str
    macs: int
    rate: Rate
    """Of tokens."""
    texts_a_token: float
    redis_us: float
    """CPU of the server for each text, of which the enqueueing is no part."""
    worker_us: float | None
    engine_us: float | None
    worker_mb: float | None
    engine_mb: float | None

    @property
    def texts_per_s(self) -> float:
        return self.rate.per_s * self.texts_a_token


def _counts(on: Server) -> Path:
    """Where the workers count what they do."""
    return on.folder / "counts"


def _log(on: Server, number: int) -> Path:
    return on.folder / f"mac-{number}.log"


def _program(checkout: Path) -> tuple[str, ...]:
    """Of a worker, as the supervisor of that checkout starts it: older ones had a command for it."""
    module = checkout / "worker" / "impetus_worker" / "host" / "worker_process.py"
    return ("-m", "impetus_worker.host.worker_process") if module.is_file() else ("-m", "impetus_worker", "work")


def _start(on: Server, mac: Mac, checkout: Path, number: int) -> subprocess.Popen[bytes]:
    settings = WorkerSettings(
        redis_urls=(on.url,),
        role="embedding",
        name=f"mac-{number}",
        backend="simulated",
        max_batch_tokens=mac.batch_tokens,
        simulated_a_ms=mac.a_ms,
        simulated_b_us=mac.b_us,
    )
    packages = os.pathsep.join(str(checkout / part) for part in ("worker", "producer", "backends"))
    with open(_log(on, number), "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", *_program(checkout)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": packages, "PROMETHEUS_MULTIPROC_DIR": str(_counts(on))},
        )
    assert process.stdin is not None
    process.stdin.write(settings.to_json().encode() + b"\n")
    process.stdin.flush()
    return process


@contextlib.contextmanager
def fleet(on: Server, mac: Mac, checkout: Path, count: int) -> Iterator[None]:
    """So many Macs with the workers of a checkout, from when all of them serve."""
    _counts(on).mkdir()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(count):
            processes.append(_start(on, mac, checkout, number))
        last, log, limit_s = processes[-1], _log(on, count - 1), START_LIMIT_S + 2 * count
        await_true(lambda: int(on.connection.scard("rq:workers")) >= count, last, log, limit_s)
        yield
    finally:
        end(processes)


def measure(on: Server, build: str, count: int, texts: int, limit_s: float) -> Measured:
    connection = on.connection
    jobs = max(1, texts // _TEXTS_A_JOB)
    workers, engines = worker_processes(on)
    # Nobody claims before all is enqueued.
    connection.set("rq:suspended", 1)
    time.sleep(1.5)
    shuffled = [docstring.text for docstring in docstrings()]
    random.Random(count).shuffle(shuffled)
    corpus = list(islice(cycle(shuffled), jobs * _TEXTS_A_JOB))
    for _ in Producer(connection=connection).embed_many(corpus, texts_per_job=_TEXTS_A_JOB, max_backlog_jobs=jobs + 64):
        pass
    cpu, begun = _cpu(on, workers, engines), time.monotonic()
    tokens, counts = tokens_of(corpus), _counts(on)
    connection.delete("rq:suspended")
    rate = steady_rate(
        lambda: tokens_given(counts), tokens, from_share=_FROM, to_share=_TO, limit_s=limit_s, poll_s=_POLL_S
    )
    # What is spent on a job is known when it has ended.
    ended = 0
    while (ended := int(connection.zcard("rq:finished:embedding-bulk"))) < jobs and time.monotonic() - begun < limit_s:
        time.sleep(_POLL_S)
    spent = [
        None if then is None or now is None else now - then
        for then, now in zip(cpu, _cpu(on, workers, engines), strict=True)
    ]
    redis_us, worker_us, engine_us = (
        None if each is None else 1e6 * each / max(1, ended * _TEXTS_A_JOB) for each in spent
    )
    return Measured(
        build, count, rate, len(corpus) / tokens, redis_us or 0.0, worker_us, engine_us,
        resident_mb(workers), resident_mb(engines),
    )  # fmt: skip


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
@click.option("--against", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="CHECKOUT",
              help="Another checkout, such as a worktree of an earlier build, that is measured too.")  # fmt: skip
@json_option("fleet")
def command(
    sizes: str, texts: int, most_texts: int, seconds: float, a_ms: float, b_us: float, batch_tokens: int, mixed: bool,
    against: Path | None, json_path: Path,
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
    report = Report(
        "fleet",
        sizes=sizes,
        texts=texts,
        a_ms=a_ms,
        b_us=b_us,
        batch_tokens=batch_tokens,
        against=against and against.name,
    )
    builds = {_THIS: ROOT} | ({against.name: against.resolve()} if against is not None else {})
    measured: list[Measured] = []
    for count, (build, checkout) in product(counts, builds.items()):
        progress(f"{count} Macs, {build} build: starting")
        with server() as on, fleet(on, Mac(a_ms, b_us, batch_tokens), checkout, count):
            measured.append(measure(on, build, count, min(most_texts, count * texts), seconds))
        progress(f"{count} Macs, {build} build: {measured[-1].texts_per_s:,.0f} texts/s")
    tell(report, measured)
    report.write(json_path)


def tell(report: Report, measured: list[Measured]) -> None:
    firsts = {each.build: each for each in reversed(measured)}
    rows = []
    for each in measured:
        first = firsts[each.build]
        of_linear = each.rate.per_s / first.rate.per_s * first.macs / each.macs
        cpu_us = [us for us in (each.redis_us, each.worker_us, each.engine_us) if us is not None]
        rows.append(
            {
                "Macs": each.macs,
                "build": each.build,
                "texts/s": each.texts_per_s,
                "of linear": f"{of_linear:.0%}",
                "seconds counted": each.rate.seconds,
                "Redis us/text": each.redis_us,
                "worker us/text": each.worker_us,
                "engine us/text": each.engine_us,
                "cores in use": sum(cpu_us) * each.texts_per_s / 1e6,
            }
        )
    ours = [(each, row) for each, row in zip(measured, rows, strict=True) if each.build == _THIS]
    linear = [each for each, row in ours if float(str(row["of linear"])[:-1]) >= 90]
    first, (last, _) = firsts[_THIS], ours[-1]
    notes = [
        f"linear (at least 90 %) up to {linear[-1].macs} Macs, {linear[-1].texts_per_s:,.0f} texts/s",
        f"Redis' one core would be full at {1e6 / last.redis_us:,.0f} texts/s, by its {last.redis_us:.0f} us a text: "
        f"that is {1e6 / last.redis_us / first.texts_per_s * first.macs:,.0f} Macs such as these",
        f"this machine has {os.cpu_count()} cores, for Redis, workers, engines and the bench alike",
        "the engine's CPU is what drawing random vectors costs",
    ]
    if last.worker_mb is not None and last.engine_mb is not None:
        notes.append(f"a worker process holds {last.worker_mb:.0f} MB, its engine process {last.engine_mb:.0f} MB")
    rates = {(each.macs, each.build): each.rate.per_s for each in measured}
    notes += [
        f"{macs} Macs: this build makes {rates[macs, _THIS] / rate:.3f} of what {build} does"
        for (macs, build), rate in rates.items()
        if build != _THIS
    ]
    report.table("fleet", f"Texts a second of simulated Macs on one Redis, {_TEXTS_A_JOB} texts a job", rows, notes)
