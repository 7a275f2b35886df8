"""`impetus embed`: documents in, vectors out, and a line about how it went."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from .. import contract
from ..bulk.late import LateEmbeddingWork
from ..bulk.run import DEFAULT_TEXTS_PER_JOB
from ..bulk.sparse import SparseEmbeddingWork
from ..bulk.works import EmbeddingWork
from ..errors import InvalidRequestError
from ..reading import chunks
from ..writing.output import open_output, open_sparse
from ..writing.rows import PRECISIONS, Layout
from .runs.bulk import Steps, open_checked, run
from .runs.chunking import chunking_steps, late_steps
from .runs.options import reading_options, run_options
from .runs.templating import Templated, template_option

if TYPE_CHECKING:
    from typing import Any

    from ..bulk.works import EmbeddedDocument
    from ..enqueueing.requests import InputType
    from ..reading.options import ReadingOptions
    from ..writing.output import Output
    from ..writing.rows import Precision
    from .runs.options import RunOptions


@click.command(short_help="Embed documents and write their vectors to a file or a database.")
@click.argument("inputs", metavar="[INPUT...]", nargs=-1)
@click.option(
    "--output",
    "-o",
    required=True,
    metavar="OUT",
    help="Where the vectors go: a name ending in .parquet, .arrow, .jsonl or .npy, or a database; see below.",
)
@reading_options
@template_option("What is embedded of each record", "'{title}: {doc.body}'")
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
    "--prompt-name",
    metavar="NAME",
    help="Put the model's own prompt of this name before each text, as sentence-transformers does.",
)
@click.option(
    "--prompt",
    metavar="TEXT",
    help="Put this before each text; '' puts nothing there, whatever the model's own default.",
)
@click.option(
    "--no-truncate", is_flag=True, help="Fail a text that is longer than the model reads, instead of cutting it."
)
@click.option(
    "--chunk",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="Cut texts into chunks of at most so many tokens, at ends of paragraphs and sentences where that is possible.",
)
@click.option(
    "--overlap",
    type=click.IntRange(min=0),
    default=0,
    metavar="TOKENS",
    help="Begin each chunk with about so many tokens of the one before.",
)
@click.option(
    "--pool-chunks", type=click.Choice(["mean"]), help="One vector for each document: the mean of those of its chunks."
)
@click.option(
    "--late-chunking",
    "late",
    is_flag=True,
    help="Have the model read each document as a whole, and make each chunk's vector of its tokens in that context. "
    "For models that pool by the mean, and documents no longer than the model reads: longer ones fail.",
)
@click.option(
    "--tokenizer",
    metavar="NAME",
    help="What counts the tokens of chunks: a model's folder, its tokenizer.json, or its name on Hugging Face. "
    "Default: that of the model.",
)
@click.option(
    "--sparse",
    is_flag=True,
    help="Write sparse vectors, token ids and their weights, of a model with a head for them: SPLADE's or bge-m3's.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="float32",
    show_default=True,
    help="The numbers that are written: int8 comes with a factor a row; binary (int8) and ubinary (uint8) are signs, "
    "eight a byte, as sentence-transformers packs them.",
)
@click.option(
    "--rows-per-file",
    type=click.IntRange(min=1),
    metavar="N",
    help="Make OUT a folder of files of N rows: OUT/00000.parquet and so on.",
)
@click.option(
    "--texts-per-job",
    type=click.IntRange(1, contract.MAX_TEXTS_PER_JOB),
    default=DEFAULT_TEXTS_PER_JOB,
    show_default=True,
    metavar="N",
    help="How many texts travel together.",
)
@run_options
def embed(
    inputs: tuple[str, ...],
    output: str,
    reading: ReadingOptions,
    template: str | None,
    model: str | None,
    dimensions: int | None,
    input_type: str | None,
    prompt_name: str | None,
    prompt: str | None,
    no_truncate: bool,
    chunk: int | None,
    overlap: int,
    pool_chunks: str | None,
    late: bool,
    tokenizer: str | None,
    sparse: bool,
    precision: str,
    rows_per_file: int | None,
    texts_per_job: int,
    options: RunOptions,
) -> None:
    """Embed the documents in INPUT and write their vectors to OUT, ids and order kept.

    INPUT is a .jsonl file or a JSON array, a .csv or .tsv file with a header, a .txt file with one document a line (all
    of them also as .gz or .zst), a .parquet or .arrow file, an .html, .md or .pdf file, a folder of such and of text
    files, a URL, or `-` for standard input; several of them and patterns such as 'data/*.jsonl' are read one after the
    other. Or it is what a database answers: --sql. A document that fails is listed with its line, its reason and
    whether it is worth trying again in OUT.errors.jsonl, the others are written, and the exit status is 1.

    OUT appears when it is whole. Until then what is done is kept in the folder OUT.impetus: when a run was interrupted
    or killed, the same command goes on from there. Equal texts are computed once.

    \b
    Examples:
        impetus embed docs.jsonl --output docs.parquet
        impetus embed books.csv --id-field isbn --text-field blurb --column title -o books.parquet
        impetus embed 'crawl/*.jsonl.gz' --text-field doc.body -o crawl.parquet
        impetus embed notes/ -o notes.jsonl
        impetus embed books/ --chunk 256 --overlap 32 --store books.sqlite -o books.parquet
        impetus embed docs.jsonl --model splade-v3 --sparse -o docs.jsonl
        impetus embed docs.jsonl -o 'postgresql://me@db.example/search?table=docs'
        impetus embed 'hf://datasets/me/docs/data/*.parquet' --template '{title}: {body}' -o docs.parquet
        impetus embed --sql sqlite:///shop.db 'select id, body as text from posts order by id' -o posts.parquet
        impetus embed manuals/ --pages -o manuals.parquet
        psql -c 'copy (...) to stdout csv header' | impetus embed - -o rows.parquet --input-format csv

    \b
    What OUT holds:
        .parquet   columns id, row, those of --column, and vector (a list of float32 of fixed size)
        .arrow     the same, as a file of record batches
        .jsonl     one {"id": ..., "row": ..., "embedding": [...]} a line
                   with --sparse: columns indices and values, and "embedding": {"indices": [...], "values": [...]}
        .npy       a float32 matrix, and the ids beside it in OUT.ids.jsonl, one a line
        folder/table.lance, file.sqlite#table, postgresql://...?table=name
                   a table of LanceDB, SQLite with sqlite-vec, or Postgres with pgvector: rows by `key`, which is the
                   id, or #row where there is none; a row of a key that is there is replaced
    A document that INPUT gives no id has none (null): its row, the number of its line, tells it. With --chunk there is
    a row for each chunk, with its number (chunk) and which characters of the text it is (start, end).
    """
    pooled = pool_chunks is not None
    work = EmbeddingWork(model, dimensions, cast("InputType | None", input_type), not no_truncate, prompt_name, prompt)
    try:
        of_tokens = SparseEmbeddingWork(work)
        (of_tokens if sparse else work).check()
        if chunk is None and (overlap or pool_chunks or late or tokenizer):
            names = "--overlap, --pool-chunks, --late-chunking and --tokenizer"
            raise InvalidRequestError(f"{names} are about chunks: add --chunk TOKENS")
        if chunk is not None and overlap >= chunk:
            raise InvalidRequestError(f"--overlap {overlap} must be less than --chunk {chunk}")
        if pooled and late:
            raise InvalidRequestError("--pool-chunks and --late-chunking: give one of the two")
        if sparse and (chunk is not None or precision != "float32"):
            raise InvalidRequestError("--chunk and --precision are about dense vectors: leave them out, or --sparse")
        templated = Templated(template, reading)
        source = open_checked(inputs, templated.asked, output, options)
        types = source.column_types()
        columns: dict[str, Any] = {name: types.get(name) for name in reading.columns}
        if chunk is not None and not pooled:
            for name in chunks.COLUMNS:
                if name in columns:
                    raise InvalidRequestError(f"chunks have a column {name!r} of their own: leave --column {name} out")
                columns[name] = int
        layout = Layout(columns, source.has_several_files, cast("Precision", precision))
        opened = open_sparse if sparse else open_output
        out: Output[Any] = opened(output, layout, rows_per_file=rows_per_file)
    except InvalidRequestError as error:
        raise click.UsageError(str(error)) from None
    worker_options = ["--roles", "embedding", *(["--embedding-model", model] if model else [])]
    if sparse:
        run(source, of_tokens, out, options, worker_options, texts_per_job, Steps(templated))
        return
    if chunk is not None and late:
        in_context: Steps[Any] = late_steps(work, chunk, overlap, tokenizer, before=templated)
        run(source, LateEmbeddingWork(work), out, options, worker_options, texts_per_job, in_context)
        return
    steps: Steps[EmbeddedDocument] = Steps(templated)
    if chunk is not None:
        steps = chunking_steps(work, chunk, overlap, tokenizer, before=templated, pooled=pooled)
    run(source, work, out, options, worker_options, texts_per_job, steps)
