"""`impetus embed`: documents in, vectors out, and a line about how it went."""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, cast

import click

from . import contract
from .bulk import DEFAULT_BACKLOG_JOBS, DEFAULT_TEXTS_PER_JOB, embed_documents
from .cli_server import open_session, patience_option, redis_url_option
from .documents import FailedDocument, open_source
from .errors import ImpetusError, InvalidRequestError
from .outputs import open_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .client import InputType
    from .documents import InputFormat, Source
    from .outputs import Output

_REDRAW_EVERY_S = 0.1


@click.command(short_help="Embed documents and write their vectors to a file.")
@click.argument("input", metavar="INPUT", type=click.Path(exists=True, allow_dash=True))
@click.option(
    "--output",
    "-o",
    required=True,
    metavar="OUT",
    help="Where the vectors go: a name ending in .parquet, .jsonl or .npy.",
)
@click.option(
    "--id-field", metavar="NAME", help="The JSON field or CSV column with the id. [default: id, else the line's number]"
)
@click.option("--text-field", metavar="NAME", help="The JSON field or CSV column with the text. [default: text]")
@click.option(
    "--input-format",
    type=click.Choice(["jsonl", "txt", "csv"]),
    help="What INPUT holds. Default: by its ending; for `-`, by its first line.",
)
@click.option("--model", metavar="NAME", help="The model. Default: the one the worker serves.")
@click.option(
    "--dimensions",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep only the first N dimensions, for models trained for that.",
)
@click.option(
    "--input-type",
    type=click.Choice(["query", "document"]),
    help="Put the model's own prompt for queries or documents before each text.",
)
@click.option(
    "--no-truncate", is_flag=True, help="Fail a text that is longer than the model reads, instead of cutting it."
)
@click.option(
    "--texts-per-job",
    type=click.IntRange(1, contract.MAX_TEXTS_PER_JOB),
    default=DEFAULT_TEXTS_PER_JOB,
    show_default=True,
    metavar="N",
    help="How many texts travel together.",
)
@click.option(
    "--max-backlog-jobs",
    type=click.IntRange(min=1),
    default=DEFAULT_BACKLOG_JOBS,
    show_default=True,
    metavar="N",
    help="How many jobs are in Redis at once.",
)
@patience_option
@redis_url_option
def embed(
    input: str,  # noqa: A002 - the name on the command line
    output: str,
    id_field: str | None,
    text_field: str | None,
    input_format: str | None,
    model: str | None,
    dimensions: int | None,
    input_type: str | None,
    no_truncate: bool,
    texts_per_job: int,
    max_backlog_jobs: int,
    patience_s: float,
    redis_url: str | None,
) -> None:
    """Embed the documents in INPUT and write their vectors to OUT, ids and order kept.

    INPUT is a .jsonl file, a .txt file with one document a line, a .csv file with a header, a folder of text files,
    or `-` for standard input. OUT is written whole or not at all. A document that fails is listed with its reason in
    OUT.errors.jsonl, the others are written, and the exit status is 1.

    \b
    Examples:
        impetus embed docs.jsonl --output docs.parquet
        impetus embed books.csv --id-field isbn --text-field blurb -o books.npy
        impetus embed notes/ -o notes.jsonl
        zcat lines.gz | impetus embed - -o lines.parquet --redis-url redis://mac-mini.local:6379/0

    \b
    What OUT holds:
        .parquet   columns id and vector (a list of float32 of fixed size)
        .jsonl     one {"id": ..., "embedding": [...]} a line
        .npy       a float32 matrix, and the ids beside it in OUT.ids.jsonl, one a line
    """
    try:
        source = open_source(
            input, input_format=cast("InputFormat | None", input_format), id_field=id_field, text_field=text_field
        )
        if os.path.exists(output) and input != "-" and os.path.samefile(input, output):
            raise InvalidRequestError("INPUT and OUT are the same file")
        out = open_output(output)
    except InvalidRequestError as error:
        raise click.UsageError(str(error)) from None
    worker_options = ["--roles", "embedding", *(["--embedding-model", model] if model else [])]
    try:
        with out, open_session(redis_url, patience_s, contract.EMBEDDING_BULK_QUEUE, worker_options) as session:
            started = time.monotonic()
            outcomes = embed_documents(
                session.producer,
                source,
                texts_per_job=texts_per_job,
                max_backlog_jobs=max_backlog_jobs,
                model=model,
                dimensions=dimensions,
                input_type=cast("InputType | None", input_type),
                truncate=not no_truncate,
                while_waiting=session.check,
            )
            # Closing withdraws what still waits, however this ends.
            with closing(cast("Any", outcomes)), _progress(source) as advance:
                for outcome in outcomes:
                    if isinstance(outcome, FailedDocument):
                        out.write_failed(outcome)
                    else:
                        out.write(outcome)
                    advance()
            if not out.written and not out.failed:
                raise ImpetusError(f"there are no documents in {source.name!r}")
            elapsed_s = time.monotonic() - started
    except KeyboardInterrupt:
        click.echo(f"\n{output} was not written; the jobs that still waited were withdrawn.", err=True)
        raise
    except OSError as error:
        if error.filename is None and not isinstance(error, ImpetusError):
            raise ImpetusError(f"{output} was not written: {error.strerror or error}") from error
        raise
    click.echo(_summary(out, elapsed_s), err=True)
    if out.failed:
        raise click.exceptions.Exit(1)


def _summary(out: Output, elapsed_s: float) -> str:
    total = out.written + out.failed
    failed = f"{out.failed:,} failed, listed in {out.errors_path}" if out.failed else "0 failed"
    where = f"vectors in {out.path}" if out.written else f"{out.path} was not written"
    return f"{total:,} documents, {failed}; {total / max(elapsed_s, 1e-9):,.1f} docs/s, {elapsed_s:.1f} s; {where}"


@contextmanager
def _progress(source: Source) -> Iterator[Callable[[], None]]:
    """A bar with count, rate and time left on a terminal, nothing elsewhere. Call what it yields for each document."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    started = drawn = time.monotonic()
    done = shown = 0

    def rate(_: object) -> str:
        return f"{done / max(time.monotonic() - started, 1e-9):,.1f} docs/s"

    total = source.count()
    # Without a length click draws a bar that moves to and fro.
    endless: Any = (None for _ in range(0))
    with click.progressbar(
        endless, length=total, label="Embedding", show_pos=True, item_show_func=rate, file=sys.stderr
    ) as bar:

        def advance() -> None:
            nonlocal done, shown, drawn
            done += 1
            # Drawing for each document would cost more than embedding some.
            if (now := time.monotonic()) - drawn >= _REDRAW_EVERY_S or done == total:
                bar.update(done - shown)
                drawn, shown = now, done

        yield advance
        bar.update(done - shown)
