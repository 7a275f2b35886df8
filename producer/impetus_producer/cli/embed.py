"""`impetus embed`: documents in, vectors out, and a line about how it went."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, cast

import click

from .. import contract
from ..bulk import DEFAULT_BACKLOG_JOBS, DEFAULT_TEXTS_PER_JOB, embed_documents
from ..errors import ImpetusError, InvalidRequestError
from ..reading.duplicates import Ids
from ..reading.source import ReadingOptions, open_source
from ..shown import printable
from ..writing.output import open_output
from .server import open_session, patience_option, redis_url_option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..documents import Read
    from ..reading.duplicates import OnDuplicate
    from ..reading.source import InputFormat, Source
    from ..requests import InputType
    from ..writing.output import Output

_REDRAW_EVERY_S = 0.1


@click.command(short_help="Embed documents and write their vectors to a file.")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option(
    "--output",
    "-o",
    required=True,
    metavar="OUT",
    help="Where the vectors go: a name ending in .parquet, .jsonl or .npy.",
)
@click.option("--id-field", metavar="NAME", help="The field or column with the id. [default: id]")
@click.option(
    "--text-field",
    metavar="NAME",
    help="The field or column with the text; doc.body is the field body within doc. [default: text]",
)
@click.option(
    "--column",
    "columns",
    metavar="NAME",
    multiple=True,
    help="A field or column to write beside the vector. May be given several times.",
)
@click.option(
    "--input-format",
    type=click.Choice(["jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow"]),
    help="What INPUT holds. Default: by its ending; for `-`, by its first lines.",
)
@click.option("--delimiter", metavar="C", help="What separates the columns of CSV. [default: a comma; a tab in .tsv]")
@click.option(
    "--encoding",
    metavar="NAME",
    help="Such as utf-16, latin-1 or cp1252. [default: by the mark it begins with, else utf-8]",
)
@click.option("--follow-links", is_flag=True, help="Read what links in a folder lead to, outside of it too.")
@click.option(
    "--on-duplicate",
    type=click.Choice(["keep", "fail", "last"]),
    default="keep",
    show_default=True,
    help="Of documents with one id: keep all, fail all but the first, or take only the last.",
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
    inputs: tuple[str, ...],
    output: str,
    id_field: str | None,
    text_field: str | None,
    columns: tuple[str, ...],
    input_format: str | None,
    delimiter: str | None,
    encoding: str | None,
    follow_links: bool,
    on_duplicate: str,
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

    INPUT is a .jsonl file or a JSON array, a .csv or .tsv file with a header, a .txt file with one document a line (all
    of them also as .gz or .zst), a .parquet or .arrow file, a folder of text files, or `-` for standard input; several
    of them and patterns such as 'data/*.jsonl' are read one after the other. OUT is written whole or not at all. A
    document that fails is listed with its line, its reason and whether it is worth trying again in OUT.errors.jsonl,
    the others are written, and the exit status is 1.

    \b
    Examples:
        impetus embed docs.jsonl --output docs.parquet
        impetus embed books.csv --id-field isbn --text-field blurb --column title -o books.parquet
        impetus embed 'crawl/*.jsonl.gz' --text-field doc.body -o crawl.parquet
        impetus embed notes/ -o notes.jsonl
        psql -c 'copy (...) to stdout csv header' | impetus embed - -o rows.parquet --input-format csv

    \b
    What OUT holds:
        .parquet   columns id, row, those of --column, and vector (a list of float32 of fixed size)
        .jsonl     one {"id": ..., "row": ..., "embedding": [...]} a line
        .npy       a float32 matrix, and the ids beside it in OUT.ids.jsonl, one a line
    A document that INPUT gives no id has none (null): its row, the number of its line, tells it.
    """
    reading = ReadingOptions(
        input_format=cast("InputFormat | None", input_format),
        id_field=id_field,
        text_field=text_field,
        columns=columns,
        delimiter="\t" if delimiter == "\\t" else delimiter,
        encoding=encoding,
        follow_links=follow_links,
    )
    try:
        source = open_source(inputs, reading)
        _check_apart(source, output)
        if on_duplicate == "last" and not source.rereadable:
            raise InvalidRequestError("--on-duplicate last reads INPUT twice, which a pipe cannot be: give a file")
        types = source.column_types() if output.lower().endswith(".parquet") else {}
        out = open_output(
            output, columns={name: types.get(name) for name in columns}, with_files=source.has_several_files
        )
    except InvalidRequestError as error:
        raise click.UsageError(str(error)) from None
    for note in source.notes:
        click.echo(printable(note), err=True)
    ids = Ids(cast("OnDuplicate", on_duplicate), as_text=out.holds_text_ids_only)
    # Outcomes come in the order of what was read: the oldest of these is the next one's.
    read: deque[Read] = deque()
    worker_options = ["--roles", "embedding", *(["--embedding-model", model] if model else [])]
    try:
        with (
            closing(ids),
            out,
            open_session(redis_url, patience_s, contract.EMBEDDING_BULK_QUEUE, worker_options) as session,
        ):
            started = time.monotonic()
            outcomes = embed_documents(
                session.producer,
                _noted(ids.checked(lambda: source), read),
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
                    out.write(outcome, read.popleft())
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
    for sentence in (source.left_out(), ids.sentence(), _first_failure(out), _summary(out, elapsed_s)):
        if sentence is not None:
            click.echo(printable(sentence), err=True)
    if out.failed:
        raise click.exceptions.Exit(1)


def _check_apart(source: Source, output: str) -> None:
    """Neither OUT nor what is written beside it may be an input, such as one that a pattern matches."""
    for written in (output, f"{output}.errors.jsonl", f"{output}.ids.jsonl"):
        for path in source.paths:
            if os.path.exists(written) and path.exists() and os.path.samefile(path, written):
                raise InvalidRequestError(f"INPUT and OUT are the same file: {str(path)!r} is written by this run")


def _noted(documents: Iterable[Read], read: deque[Read]) -> Iterator[Read]:
    for document in documents:
        read.append(document)
        yield document


def _first_failure(out: Output) -> str | None:
    failure = out.first_failure
    if failure is None:
        return None
    place = f"{failure.file}, " if failure.file is not None else ""
    return f"The first that failed: {place}{'' if failure.id is None else f'id {failure.id!r}, '}{failure.reason}"


def _summary(out: Output, elapsed_s: float) -> str:
    total = out.written + out.failed
    failed = f"{out.failed:,} failed, listed in {out.errors_path}" if out.failed else "0 failed"
    where = f"vectors in {out.path}" if out.written else f"{out.path} was not written"
    if out.set_aside is not None:
        where += f", and an earlier run's is now {out.set_aside}"
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
