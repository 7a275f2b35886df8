"""Tokens a second of the same jobs through Redis, through mlx-lm's `BatchGenerator` alone, and over its HTTP server.

All sides are up for all rounds, and run in turn; each counts from its first text to its last. No token ends an answer,
so that all make as many tokens. Sides in processes of their own get the very same prompts; the two that share the
worker with the first get others of the same lengths, lest one's prompts be remembered for the next.
"""

from __future__ import annotations

import contextlib
import json
import queue
import sys
import threading
import time
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import click

from ..means.report import Report, median, progress, spread
from ..means.servers import await_true, child, cpu_of_processes, server, worker_processes
from .program import program
from .queueing import LIMIT_S, generating, submit
from .subjects import Prompts
from .verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ..means.servers import Server
    from .program import Program
    from .subjects import Subject

_ROWS = 16
_MOST_JOBS, _LEAST_JOBS = 160, 32
_MOST_TOKENS, _LEAST_TOKENS = 132, 48
"""Of an answer, on average. Shorter ones would measure how prompts are read rather than how tokens are made."""
BARE, ENGINE, BACKLOG, CALLERS, HTTP, SINGLE, BARE_SINGLE = (
    "BatchGenerator, bare",
    "Impetus's engine, no queue",
    "Redis, a backlog",
    "Redis, 16 callers",
    "mlx_lm.server, 16 clients",
    "Redis, one at a time",
    "mlx-lm, bare, one at a time",
)
_CONNECTS = 20
Payloads = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Run:
    tokens: int
    seconds: float
    cpu_s: dict[str, float]
    """By process."""

    @property
    def per_s(self) -> float:
        return self.tokens / self.seconds


def tell(report: Report, subject: Subject, *, rounds: int, seconds: float) -> list[Verdict]:
    """`seconds`: what a side's run should take."""
    with (
        server() as on,
        generating(on, subject.endless, subject.environment),
        program(subject.endless, on.folder / "bare.log", subject.environment) as alone,
        program(subject.endless, on.folder / "engine.log", subject.environment) as engine,
        http_server(on, subject.endless, subject.environment) as port,
    ):
        count, mean = sizes(subject, alone, seconds)
        sides: dict[str, Callable[[Payloads], Run]] = {
            BARE: lambda payloads: run_bare(alone, payloads),
            ENGINE: lambda payloads: _asked(engine, "engine", payloads),
            BACKLOG: lambda payloads: run_backlog(on, payloads),
            CALLERS: lambda payloads: _callers(on, payloads),
            HTTP: lambda payloads: _clients(port, payloads),
            SINGLE: lambda payloads: _one_at_a_time(on, payloads[: max(3, count // 16)]),
            BARE_SINGLE: lambda payloads: _asked(alone, "bare one at a time", payloads[: max(3, count // 16)]),
        }
        for name in (ENGINE, HTTP):
            sides[name](Prompts(subject.endless, -1).payloads(_ROWS, 16))  # warm
        runs: dict[str, list[Run]] = {name: [] for name in sides}
        names = list(sides)
        for number in range(rounds):
            same = Prompts(subject.endless, number).payloads(count, mean)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                own = same
                if name in (CALLERS, SINGLE):
                    others = Prompts(subject.endless, 1000 * (names.index(name) + 1) + number).payloads(count, mean)
                    own = [mine | {"max_tokens": other["max_tokens"]} for mine, other in zip(others, same, strict=True)]
                run = sides[name](own)
                runs[name].append(run)
                progress(f"{subject.name}, round {number + 1}: {name} {run.per_s:,.0f} tokens/s")
    return _told(report, subject, runs, count, mean)


def _told(report: Report, subject: Subject, runs: dict[str, list[Run]], count: int, mean: int) -> list[Verdict]:
    rows = [
        {
            "side": name,
            "tokens/s": median([run.per_s for run in each]),
            "range": spread([run.per_s for run in each]),
            "of bare": median(_ratios(each, runs[BARE])),
            "CPU ms a 1,000 tokens": ", ".join(
                f"{process} {median([1e6 * run.cpu_s[process] / run.tokens for run in each]):,.0f}"
                for process in each[0].cpu_s
            ),
        }
        for name, each in runs.items()
    ]
    notes = [f"{count} jobs of {mean} tokens on average, each exactly its `max_tokens`; prompts of 8 to 60 tokens"]
    whole = [run.tokens for run in runs[BARE]]
    notes += [
        f"{name} made {[run.tokens for run in runs[name]]} tokens a round, and the bare generator {whole}"
        for name in (ENGINE, BACKLOG, CALLERS, HTTP)
        if [run.tokens for run in runs[name]] != whole
    ]
    report.table(f"rates_{subject.name}", f"Tokens a second, greedy, {_ROWS} rows: {subject.name}", rows, notes)
    ceiling = median(_ratios(runs[BARE], runs[BARE_SINGLE]))
    comparisons = [(BACKLOG, SINGLE, 5.0), (CALLERS, HTTP, 1.0)]
    verdicts = []
    for side, other, asked in comparisons:
        ratios = _ratios(runs[side], runs[other])
        only_tiny = other == SINGLE and subject.name != "tiny-says"
        verdicts.append(
            Verdict(
                f"tokens/s: {side} / {other}", subject.name, "-" if only_tiny else f">= {asked:g}",
                f"{median(ratios):.2f} ({spread(ratios)})" + (f"; bare: {ceiling:.2f}" if other == SINGLE else ""),
                only_tiny or median(ratios) >= asked,
            )
        )  # fmt: skip
    return verdicts


def _ratios(side: Sequence[Run], other: Sequence[Run]) -> list[float]:
    return [mine.per_s / theirs.per_s for mine, theirs in zip(side, other, strict=True)]


def sizes(subject: Subject, alone: Program, seconds: float) -> tuple[int, int]:
    """(jobs, their mean answer in tokens) that keep the bare model busy for so long, within bounds."""
    # Twice: the first is cold, and its short answers make prompts weigh too much.
    first = run_bare(alone, Prompts(subject.endless, -2).payloads(2 * _ROWS, 16))
    mean = max(16, min(_MOST_TOKENS, int(first.per_s) // _ROWS))
    tokens = int(seconds * run_bare(alone, Prompts(subject.endless, -3).payloads(2 * _ROWS, mean)).per_s)
    mean = max(_LEAST_TOKENS, min(_MOST_TOKENS, tokens // _LEAST_JOBS))
    return max(_LEAST_JOBS, min(_MOST_JOBS, tokens // mean)), mean


def run_bare(process: Program, payloads: Payloads) -> Run:
    return _asked(process, "bare", payloads)


def _asked(process: Program, task: str, payloads: Payloads) -> Run:
    answer = process.ask(task, payloads=payloads)
    return Run(answer["tokens"], answer["seconds"], {"all": answer["cpu_s"]})


def _measured(on: Server, run: Callable[[], int]) -> Run:
    """Runs what returns a number of tokens, and looks at what the worker, its engine and Redis used meanwhile."""
    workers, engines = worker_processes(on)

    def used() -> dict[str, float]:
        return {
            "engine": cpu_of_processes(engines) or 0.0, "worker": cpu_of_processes(workers) or 0.0, "Redis": on.cpu_s(),
        }  # fmt: skip

    before, started = used(), time.perf_counter()
    tokens = run()
    seconds = time.perf_counter() - started
    return Run(tokens, seconds, {name: after - before[name] for name, after in used().items()})


def run_backlog(on: Server, payloads: Payloads) -> Run:
    def run() -> int:
        return sum(
            handle.result(timeout_s=LIMIT_S).usage.completion_tokens for handle in submit(on, payloads)
        )  # fmt: skip

    return _measured(on, run)


def _one_at_a_time(on: Server, payloads: Payloads) -> Run:
    def answer(payload: dict[str, Any]) -> int:
        return submit(on, [payload])[0].result(timeout_s=LIMIT_S).usage.completion_tokens

    return _measured(on, lambda: sum(answer(payload) for payload in payloads))


def _callers(on: Server, payloads: Payloads) -> Run:
    def caller(ask: Callable[[], dict[str, Any] | None], done: Callable[[int], None]) -> None:
        while (payload := ask()) is not None:
            done(submit(on, [payload])[0].result(timeout_s=LIMIT_S).usage.completion_tokens)

    return _measured(on, lambda: _together(caller, payloads))


def _clients(port: int, payloads: Payloads) -> Run:
    def client(ask: Callable[[], dict[str, Any] | None], done: Callable[[int], None]) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
        with contextlib.closing(connection):
            while (payload := ask()) is not None:
                done(_posted(connection, payload)["usage"]["completion_tokens"])

    started = time.perf_counter()
    tokens = _together(client, payloads)
    return Run(tokens, time.perf_counter() - started, {})


def _posted(connection: HTTPConnection, payload: dict[str, Any]) -> Any:
    body = json.dumps({"model": "default_model", **payload})
    for _ in range(_CONNECTS):
        try:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())
        except ConnectionError:
            # The server lets five connections wait to be accepted, and 16 clients may come at once.
            connection.close()
    raise click.ClickException(f"mlx_lm.server refused {_CONNECTS} connections in a row")


def _together(
    caller: Callable[[Callable[[], dict[str, Any] | None], Callable[[int], None]], None], payloads: Payloads
) -> int:
    """Runs 16 callers, each with one request under way at a time, and returns the tokens that they were given."""
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    for payload in payloads:
        waiting.put(payload)
    counts: list[int] = []
    errors: list[BaseException] = []

    def ask() -> dict[str, Any] | None:
        with contextlib.suppress(queue.Empty):
            return waiting.get_nowait()
        return None

    def run() -> None:
        try:
            caller(ask, counts.append)
        except Exception as error:  # noqa: BLE001  # it is raised again below, by the thread that can end the bench
            errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(_ROWS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    if len(counts) != len(payloads):
        raise click.ClickException(f"{len(counts)} of {len(payloads)} requests were answered")
    return sum(counts)


@contextlib.contextmanager
def http_server(on: Server, model: Path, environment: Mapping[str, str]) -> Iterator[int]:
    """`python -m mlx_lm.server` with as many rows as the worker has, answering on the port that is yielded."""
    port = free_port()
    log = on.folder / "http.log"
    command: list[str | Path] = [
        sys.executable, "-m", "mlx_lm.server", "--model", model, "--port", str(port),
        "--decode-concurrency", str(_ROWS), "--prompt-concurrency", str(_ROWS), "--log-level", "ERROR",
    ]  # fmt: skip

    def healthy() -> bool:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    with child(command, log, environment=environment) as process:
        await_true(healthy, process, log)
        yield port


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
