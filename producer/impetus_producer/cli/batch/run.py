"""`impetus batch run`: a file of requests, answered through the queues."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast
from uuid import uuid4

import click

from ...batches.endpoints import ENDPOINTS
from ...batches.journal import Journal
from ...batches.lines import read_lines, survey
from ...errors import ImpetusError, InvalidRequestError
from ...shown import printable
from ..ending import noting, run_tasks
from ..runs.progress import ProgressKind, progress
from ..settings.server import open_session, patience_option, redis_urls_option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ...batches.lines import Survey
    from ..settings.server import Session

_SHOWN_ERRORS = 20
_WINDOW_JOBS = 256


@click.command(short_help="Answer a file of requests, line by line.")
@click.argument("source", metavar="IN.jsonl", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("worker_options", nargs=-1, metavar="[-- WORKER-OPTION...]")
@click.option(
    "--output", "-o", required=True, metavar="OUT.jsonl", type=click.Path(dir_okay=False, path_type=Path),
    help="Where answers go, in the order in which they come. Errors go to OUT.jsonl.errors.jsonl.",
)  # fmt: skip
@click.option("--restart", is_flag=True, help="Begin anew, and throw away what an earlier run of OUT did.")
@click.option(
    "--window", "window_jobs", type=click.IntRange(1, 1024), default=_WINDOW_JOBS, show_default=True,
    help="How many requests are on the queues at a time.",
)  # fmt: skip
@click.option(
    "--progress", "progress_kind", type=click.Choice(["auto", "bar", "lines", "json", "none"]), default="auto",
    show_default=True, help="How to say on stderr how far it is: auto is a bar on a terminal, else a line every 5 s.",
)  # fmt: skip
@redis_urls_option
@patience_option
def run(
    source: Path,
    worker_options: tuple[str, ...],
    output: Path,
    restart: bool,
    window_jobs: int,
    progress_kind: str,
    redis_urls: tuple[str, ...],
    patience_s: float,
) -> None:
    """Answers each line of IN.jsonl, which is what OpenAI's Batch API takes: at most 50,000 lines and 200 MB of

    \b
        {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": "…"}}
        {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": […]}}

    with a `custom_id` each; other urls are /v1/completions and /v1/rerank. What comes back is in OpenAI's format too. A
    line that cannot be answered fails alone, with its reason in OUT.jsonl.errors.jsonl, and the exit status is 1.

    Interrupted or killed, the same command goes on where it stopped: what is in OUT.jsonl is not asked for again, and
    what workers have made meanwhile is taken up.

    \b
        impetus batch run requests.jsonl -o answers.jsonl
        impetus batch run rankings.jsonl -o answers.jsonl -- --rerank-model BAAI/bge-reranker-v2-m3

    Where no server is given or found, one is started, with a worker, for this run; what comes after `--` are that
    worker's options (`impetus-worker run --help`).
    """
    kind = cast("ProgressKind", progress_kind)
    place = _Place(output)
    place.check_apart(source)
    with source.open("rb") as file:
        found = survey(file)
    refuse(found)
    with place.journal(restart) as journal:
        run_id = place.run_id(journal, found.digest, restart)
        if journal.done:
            click.echo(f"Going on: {len(journal.done):,} of {found.lines:,} are done.", err=True)
        if len(journal.done) < found.lines:
            options = ["--roles", ",".join(sorted(found.roles)), *worker_options]
            queue = next(each.queue for each in ENDPOINTS.values() if each.role in found.roles)
            with (
                noting(lambda: f"{output} is not whole yet: run the same command again to go on"),
                open_session(redis_urls, patience_s, queue, options) as session,
            ):
                _run(run_id, source, journal, place.note, session, window_jobs, found.lines, kind)
        where = f", listed in {journal.errors}" if journal.failed else ""
        click.echo(printable(f"{journal.completed:,} answered in {output}, {journal.failed:,} failed{where}"), err=True)
        if journal.failed:
            raise click.exceptions.Exit(1)


def refuse(found: Survey) -> None:
    """Says what is wrong with an input, and raises `InvalidRequestError`, where something is."""
    if not found.errors:
        return
    for error in found.errors[:_SHOWN_ERRORS]:
        where = "" if error.line is None else f"line {error.line}: "
        click.echo(printable(f"{where}{error.message}"), err=True)
    more = len(found.errors) - _SHOWN_ERRORS
    raise InvalidRequestError(
        f"the input is refused, and nothing was sent{f'; {more} more lines are wrong' if more > 0 else ''}"
    )


class _Place:
    """Where a run writes: OUT, its errors, and a note by which the same run is known again, which is its lock too."""

    def __init__(self, output: Path) -> None:
        self.output = Path(os.path.realpath(output))
        self.note = self.output.with_name(f".{self.output.name}.batch")

    def check_apart(self, source: Path) -> None:
        if not source.is_file():
            raise InvalidRequestError("IN.jsonl is read twice, which a pipe cannot be: give a file")
        if self.output.exists() and self.output.samefile(source):
            raise InvalidRequestError("IN.jsonl and OUT.jsonl are the same file: give another name")

    def journal(self, anew: bool) -> Journal:
        return Journal(self.output, self.output.with_name(f"{self.output.name}.errors.jsonl"), self.note, anew=anew)

    def run_id(self, journal: Journal, digest: str, anew: bool) -> str:
        """The same whenever this run goes on. Raises `InvalidRequestError` where OUT is of another one."""
        try:
            noted = {} if anew else json.loads(self.note.read_bytes())
        except ValueError:
            noted = {}
        if isinstance(noted, dict) and noted.get("input") == digest:
            return str(noted["run"])
        if journal.done:
            raise InvalidRequestError(
                f"{self.output.name} was begun from another input: give another name, or --restart to begin anew"
            )
        run_id = uuid4().hex
        with self.note.open("w") as file:
            json.dump({"input": digest, "run": run_id}, file)
            file.flush()
            os.fsync(file.fileno())
        return run_id


def _run(
    run_id: str,
    source: Path,
    journal: Journal,
    note: Path,
    session: Session,
    window_jobs: int,
    total: int,
    kind: ProgressKind,
) -> None:
    # The other commands need none of these.
    import asyncio

    from ...asynchronous import for_tasks
    from ...batches.lease import Lease
    from ...batches.runner import Runner

    def look() -> None:
        session.check()
        answered()

    async def main() -> None:
        async with for_tasks(session.producer, patience_s=session.producer.patience.limit_s) as producer:
            for each in producer.servers:
                each.patience.say = session.producer.servers[0].patience.say
            lease = Lease(producer, run_id, note)
            if not await lease.take():
                raise ImpetusError("this run goes on elsewhere: wait until it ends, or half a minute if it was killed")
            runner = Runner(producer, run_id, journal, lease, look, window_jobs)
            try:
                with source.open("rb") as file:
                    await runner.run(read_lines(file))
            except (asyncio.CancelledError, BrokenPipeError):
                await runner.withdraw()
                raise
            finally:
                await lease.give_up()

    with _shown(kind, journal, total) as answered:
        run_tasks(main)


@contextmanager
def _shown(kind: ProgressKind, journal: Journal, total: int) -> Iterator[Callable[[], None]]:
    """Yields what to call now and then, which shows how far the journal is."""
    began, shown = len(journal.done), 0
    with progress(kind, lambda: total, lambda: len(journal.done) > began, "Answering", "requests") as (advance, _):

        def answered() -> None:
            nonlocal shown
            many, shown = len(journal.done) - shown, len(journal.done)
            advance(many)

        yield answered
        answered()
