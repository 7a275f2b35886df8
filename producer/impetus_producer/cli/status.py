"""`impetus status`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import click

from ..errors import NoServerError, ServerNotReadyError
from ..servers.discovery import find_redis_urls
from ..servers.fitness import Finding, Fitness, Level, look
from ..shown import name_shown, without_password
from ..watching.fleet import Fleet, merged, read_fleet
from ..watching.runs import read_runs
from .runs.progress import spoken
from .settings.server import no_worker, patience_option, patient_producers, redis_urls_option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from redis import Redis

    from ..client import Producer
    from ..watching.fleet import WorkerState
    from ..watching.runs import RunState


AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class ServerSeen:
    """One server, and what is on it. `url`: without its password."""

    url: str
    fleet: Fleet
    """Empty where it is away, which its fitness tells."""
    fitness: Fitness
    runs: tuple[RunState, ...]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@patience_option
@redis_urls_option
def status(as_json: bool, patience_s: float, redis_urls: tuple[str, ...]) -> None:
    """Show the queues, their workers, whether anyone is listening, runs over many documents and how far they are, and
    whether the server keeps what it is given. Of several servers it shows what is on all of them together.

    Reads only: nothing is moved or cleaned up by looking.

    \b
    Examples:
        impetus status
        impetus status --json | jq '.queues[] | select(.waiting > 0)'
        impetus status --redis-url redis://one:6379/0 --redis-url redis://two:6379/0
    """
    producers = patient_producers(redis_urls, patience_s).servers
    servers = see_all(producers, find_redis_urls(redis_urls))
    runs = [run for server in servers for run in server.runs]
    if not as_json:
        for line in lines(servers, runs=runs):
            click.echo(line)
        return
    said = {
        "server": " ".join(server.url for server in servers),
        **asdict(merged([server.fleet for server in servers])),
        "unattended": list(dict.fromkeys(queue for server in servers for queue in server.fleet.unattended())),
        "runs": [asdict(run) for run in runs],
        "findings": [asdict(finding) for server in servers for finding in server.fitness.findings],
        "servers": [
            {"server": server.url, "unattended": server.fleet.unattended(), **asdict(server.fitness)}
            for server in servers
        ],
    }
    click.echo(json.dumps(said))


def see_all(producers: Sequence[Producer], urls: Sequence[str]) -> list[ServerSeen]:
    """What is on each server now. Waits for one that is away, but not for one of several, of which it says so."""
    once = len(producers) > 1
    seen, errors = [], []
    for producer, url in zip(producers, urls, strict=True):
        try:
            fleet = _asked(producer, read_fleet, once=once)
            fitness = _asked(producer, partial(look, role="producer"), once=once)
            runs = _asked(producer, read_runs, once=once)
        except (NoServerError, ServerNotReadyError) as error:
            fleet, fitness, runs = Fleet((), (), suspended=False), Fitness((Finding(Level.REFUSE, str(error)),)), ()
            errors.append(error)
        seen.append(ServerSeen(without_password(url), fleet, fitness, runs))
    if len(errors) == len(seen):
        raise errors[0]
    return seen


def _asked(producer: Producer, question: Callable[[Redis], AnswerT], *, once: bool) -> AnswerT:
    return producer.patience.ask(producer.connection, partial(question, producer.connection), once=once)


def lines(
    servers: Sequence[ServerSeen], rates: Mapping[str, float] | None = None, runs: Sequence[RunState] = ()
) -> Iterator[str]:
    """What there is to say, for a person. `rates`: how many jobs of each queue end a second, where that is known."""
    fleet = merged([server.fleet for server in servers])
    for server in servers:
        yield f"Server  {server.url}"
        for finding in server.fitness.findings:
            yield f"  {finding.level}: {finding.sentence}"
    yield ""
    header, rows = (
        ["Queue", "waiting", "running", "finished", "failed"],
        [[q.name, q.waiting, q.running, q.finished, q.failed] for q in fleet.queues],
    )
    if rates is not None:
        header += ["oldest", "ended/s"]
        for row, queue in zip(rows, fleet.queues, strict=True):
            row += ["" if queue.oldest_s is None else f"{queue.oldest_s:.0f} s", f"{rates.get(queue.name, 0.0):.1f}"]
    yield from _table(header, rows, numbers_from=1)
    if fleet.queues_left_out:
        yield f"and {fleet.queues_left_out:,} more queues, which are not shown"
    yield ""
    if runs:
        cells = [(run.label, run.output, f"{run.machine}:{run.pid}", *_far(run)) for run in runs]
        yield from _table(("Run", "output", "on", "documents", "docs/s", "left"), cells, numbers_from=3)
        yield ""
    if fleet.workers:
        workers = [(w.name, w.state, w.jobs, _seen(w), w.device or "?", ", ".join(w.queues)) for w in fleet.workers]
        yield from _table(("Worker", "state", "jobs", "last seen", "device", "listens to"), workers, numbers_from=6)
    if fleet.workers_left_out:
        yield (
            f"and {fleet.workers_left_out:,} more names of workers, which are not shown: "
            "whether anybody listens to a queue is unknown"
        )
    if fleet.workers or fleet.workers_left_out:
        yield ""
    for worker in fleet.workers:
        name = name_shown(worker.name)
        if worker.alive and not worker.serving:
            yield f"{name}: its engine is loading its model, or is stuck; its jobs wait."
        if worker.engine_deaths:
            times = "once" if worker.engine_deaths == 1 else f"{worker.engine_deaths} times"
            yield f"{name}: its engine died {times} and was started again; its log says of what."
    for server in servers:
        of_it = f" of {server.url}" if len(servers) > 1 else ""
        if server.fleet.suspended:
            yield f"The workers{of_it} are suspended: they take no jobs until `rq resume`."
        if unattended := server.fleet.unattended():
            yield no_worker(unattended, server.url)


def _far(run: RunState) -> tuple[str, str, str]:
    documents = f"{run.documents:,}" + ("" if run.total is None else f" of {run.total:,}")
    rate = "" if run.docs_per_s is None else f"{run.docs_per_s:,.1f}"
    return documents, rate, "" if run.left_s is None else spoken(run.left_s)


def _seen(worker: WorkerState) -> str:
    if worker.silent_s is None:
        return "?"
    return f"{worker.silent_s:.0f} s ago" + ("" if worker.alive else ", silent")


def _table(header: Sequence[str], rows: Iterable[Sequence[object]], numbers_from: int) -> Iterator[str]:
    """Columns as wide as they need to be, numbers to the right; what others wrote is shortened."""
    shown = [header, *(["?" if cell is None else name_shown(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in shown) for at in range(len(header))]
    for line in shown:
        cells = (
            cell.rjust(width) if at >= numbers_from else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
