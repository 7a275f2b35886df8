"""How long somebody waits for one text while a bulk backlog is worked off.

The backlog is docstrings of the standard library, 64 texts a job, all on the bulk queue before the first probe and not
gone after the last; the worker has then been at it for two seconds. A probe is one short text by `Producer.embed`; the
next is sent when its result is there, after a pause of random length, so that probes fall anywhere into a running
batch. Counted is the time from before the call until `result()` returns.

The bound is what a probe may wait for: the batch that runs when it comes, its own batch, and 20 ms.

- simulated (the default): a batch takes a + b * padded tokens, so the bound is known: (a + b * the worker's token
  budget) + (a + b * the probe's tokens) + 20 ms. The probe's wait for others to join it (`--max-wait-ms`) is part
  of the 20 ms.
- cpu: the time of a batch is measured first, in this process, on an idle machine: the longest of some full batches of
  the corpus, and of the probe alone. With one worker, the engine's cores are also the bench's.

For comparison the same probes are sent to the same worker with nothing else to do.
"""

from __future__ import annotations

import random
import time
from itertools import cycle, islice
from typing import TYPE_CHECKING

import click
from scripts.corpus import docstrings

from impetus_backends import models
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_producer import Producer
from impetus_worker.batches.planning.packing import pack

from .means.report import Report, json_option, median, progress, quantile
from .means.servers import Server, server, worker

if TYPE_CHECKING:
    from pathlib import Path

_PROBE = "how do I parse the arguments of a command line"
_PROBE_TOKENS = len(_PROBE.split()) + 2
_SLACK_MS = 20.0
_HEAD_START_S = 2.0
_TEXTS_A_JOB = 64
_PAUSE_S = 0.05
_BULK = "rq:queue:embedding-bulk"
_MAX_ROWS = 256


def fill(on: Server, texts: int) -> None:
    corpus = cycle([docstring.text for docstring in docstrings()])
    producer = Producer(connection=on.connection)
    for _ in producer.embed_many(islice(corpus, texts), texts_per_job=_TEXTS_A_JOB, max_backlog_jobs=texts):
        pass


def probe(on: Server, count: int, limit_s: float, seed: int) -> list[float]:
    """Milliseconds of each probe; fewer than `count` when the time is over."""
    producer, chance = Producer(connection=on.connection), random.Random(seed)
    latencies: list[float] = []
    deadline = time.monotonic() + limit_s
    while len(latencies) < count and time.monotonic() < deadline:
        time.sleep(chance.uniform(0, _PAUSE_S))
        started = time.perf_counter()
        handle = producer.embed(_PROBE)
        handle.result(timeout_s=60)
        latencies.append(1000 * (time.perf_counter() - started))
        handle.delete()
    return latencies


def batch_times_ms(backend_name: str, max_tokens: int) -> tuple[float, float]:
    """(the longest full batch of the corpus, the probe's own) of the bare backend, each the median of three runs."""
    folder = models.resolve(models.DEFAULT_EMBEDDING_MODEL).folder
    encoder, backend = TextEncoder.load(folder), make_backend(backend_name, folder)
    backend.load()
    rows = [text.ids for text in encoder.encode([docstring.text for docstring in docstrings(2000)])]
    batches = pack(rows, len, max_tokens=max_tokens, max_rows=_MAX_ROWS)
    own = [text.ids for text in encoder.encode([_PROBE])]
    times = []
    for batch in [own, *batches[:: max(1, len(batches) // 12)]]:
        runs = []
        for _ in range(3):
            started = time.perf_counter()
            backend.embed(batch)
            runs.append(1000 * (time.perf_counter() - started))
        times.append(median(runs))
    return max(times[1:]), times[0]


@click.command("latency")
@click.option("--backlog", default=100_000, show_default=True, help="Bulk texts enqueued before the probes of a round.")
@click.option("--probes", default=200, show_default=True, help="Single texts sent one at a time, in each round.")
@click.option("--rounds", default=2, show_default=True)
@click.option("--seconds", default=40.0, show_default=True, help="The longest that the probes of a round may take.")
@click.option("--backend", default="simulated", show_default=True, type=click.Choice(["simulated", "cpu"]))
@click.option("--a-ms", default=4.0, show_default=True, help="Simulated: what a batch costs.")
@click.option("--b-us", default=20.0, show_default=True, help="Simulated: what a padded token costs.")
@click.option("--batch-tokens", type=int, help="The worker's budget of padded tokens.  [default: 4096; cpu: 1024]")
@json_option("latency")
def command(
    backlog: int, probes: int, rounds: int, seconds: float, backend: str, a_ms: float, b_us: float,
    batch_tokens: int | None, json_path: Path,
) -> None:  # fmt: skip
    """Interactive p50 and p99 during a bulk backlog."""
    tokens = batch_tokens or (4096 if backend == "simulated" else 1024)
    report = Report("latency", backend=backend, backlog=backlog, probes=probes, rounds=rounds, batch_tokens=tokens)
    if backend == "simulated":
        running_ms, own_ms = a_ms + b_us * tokens / 1000, a_ms + b_us * _PROBE_TOKENS / 1000
    else:
        running_ms, own_ms = batch_times_ms(backend, tokens)
    bound_ms = running_ms + own_ms + _SLACK_MS
    options = ["--embedding-backend", backend, "--max-batch-tokens", str(tokens)]
    options += ["--simulated-a-ms", str(a_ms), "--simulated-b-us", str(b_us)]
    idle: list[float] = []
    busy: list[float] = []
    rounds_p99: list[float] = []
    least_left: int | None = None
    with server() as on, worker(on, *options):
        probe(on, 20, seconds, 0)
        for number in range(rounds):
            idle += probe(on, probes // 4, seconds, number)
            fill(on, backlog)
            time.sleep(_HEAD_START_S)
            latencies = probe(on, probes, seconds, number)
            left = int(on.connection.llen(_BULK))
            if not left:
                raise click.ClickException("the backlog ran out before the probes: give a larger --backlog")
            least_left = min(left, least_left or left)
            on.connection.delete(_BULK)
            busy += latencies
            rounds_p99.append(quantile(latencies, 0.99))
            progress(f"round {number + 1}: p50 {median(latencies):.0f} ms, p99 {rounds_p99[-1]:.0f} ms")
            # What the worker holds of the backlog it works off before the next round's idle probes.
            while int(on.connection.zcard("rq:wip:embedding-bulk")):
                time.sleep(0.1)
    rows = [
        {
            "probes": name, "count": len(each), "p50 ms": median(each), "p90 ms": quantile(each, 0.9),
            "p99 ms": quantile(each, 0.99), "longest ms": max(each),
            "over the bound": sum(latency > bound_ms for latency in each),
        }
        for name, each in (("with nothing else to do", idle), ("during the backlog", busy))
    ]  # fmt: skip
    notes = [
        f"bound: running batch {running_ms:.1f} + own batch {own_ms:.1f} + {_SLACK_MS:g} = {bound_ms:.1f} ms "
        + ("(by the simulated model)" if backend == "simulated" else "(batches measured bare, before)"),
        f"p99 {'keeps' if quantile(busy, 0.99) <= bound_ms else 'EXCEEDS'} it; of each round: "
        + ", ".join(f"{p99:.1f}" for p99 in rounds_p99),
        f"{least_left} or more bulk jobs of {_TEXTS_A_JOB} texts still waited after the last probe of a round",
    ]
    report.add("bound_ms", bound_ms)
    report.add("latencies_ms", {"idle": idle, "busy": busy})
    report.table("latency", "Milliseconds from enqueueing one text to having its vector", rows, notes)
    report.write(json_path)
