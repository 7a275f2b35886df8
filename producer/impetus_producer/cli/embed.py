"""`impetus embed`: documents in, vectors out, and a line about how it went."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from .. import contract
from ..bulk import DEFAULT_BACKLOG_JOBS, DEFAULT_TEXTS_PER_JOB
from ..errors import InvalidRequestError
from ..reading.source import ReadingOptions, open_source
from ..works import EmbeddingWork
from ..writing.output import open_output
from .bulk import RunOptions, check_apart, run, run_options
from .server import patience_option, redis_url_option

if TYPE_CHECKING:
    from pathlib import Path

    from ..client import InputType
    from ..reading.duplicates import OnDuplicate
    from ..reading.source import InputFormat
    from .progress import ProgressKind


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
@run_options
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
    resume: bool,
    store: Path | None,
    progress_kind: str,
    as_json: bool,
    patience_s: float,
    redis_url: str | None,
) -> None:
    """Embed the documents in INPUT and write their vectors to OUT, ids and order kept.

    INPUT is a .jsonl file or a JSON array, a .csv or .tsv file with a header, a .txt file with one document a line (all
    of them also as .gz or .zst), a .parquet or .arrow file, a folder of text files, or `-` for standard input; several
    of them and patterns such as 'data/*.jsonl' are read one after the other. A document
    that fails is listed with its line, its reason and whether it is worth trying again in OUT.errors.jsonl, the others
    are written, and the exit status is 1.

    OUT appears when it is whole. Until then what is done is kept in the folder OUT.impetus: when a run was interrupted
    or killed, the same command goes on from there. Equal texts are computed once.

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
        check_apart(source, output)
        if on_duplicate == "last" and not source.rereadable:
            raise InvalidRequestError("--on-duplicate last reads INPUT twice, which a pipe cannot be: give a file")
        types = source.column_types() if output.lower().endswith(".parquet") else {}
        out = open_output(
            output, columns={name: types.get(name) for name in columns}, with_files=source.has_several_files
        )
    except InvalidRequestError as error:
        raise click.UsageError(str(error)) from None
    options = RunOptions(
        resume=resume,
        store=store,
        on_duplicate=cast("OnDuplicate", on_duplicate),
        documents_per_job=texts_per_job,
        max_backlog_jobs=max_backlog_jobs,
        progress=cast("ProgressKind", progress_kind),
        as_json=as_json,
        patience_s=patience_s,
        redis_url=redis_url,
    )
    work = EmbeddingWork(model, dimensions, cast("InputType | None", input_type), truncate=not no_truncate)
    worker_options = ["--roles", "embedding", *(["--embedding-model", model] if model else [])]
    run(source, work, out, options, worker_options, "Embedding")
