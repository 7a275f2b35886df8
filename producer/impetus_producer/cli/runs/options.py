"""The options that runs over many documents have in common, made into what the run takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ...bulk.run import DEFAULT_BACKLOG_JOBS
from ...reading.options import ReadingOptions
from ..settings.gathering import gathered
from ..settings.server import patience_option, redis_urls_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...reading.duplicates import OnDuplicate
    from .progress import ProgressKind


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run goes, whatever is done with its documents."""

    on_duplicate: OnDuplicate
    max_backlog_jobs: int
    resume: bool
    store: str | None
    progress: ProgressKind
    as_json: bool
    patience_s: float
    redis_urls: tuple[str, ...]


def reading_options(command: Callable[..., Any]) -> Any:
    """Gives a command `reading`, a `ReadingOptions`."""
    return gathered(
        command,
        "reading",
        ReadingOptions,
        click.option("--id-field", metavar="NAME", help="The field or column with the id. [default: id]"),
        click.option(
            "--text-field",
            metavar="NAME",
            help="The field or column with the text; doc.body is the field body within doc. [default: text]",
        ),
        click.option(
            "--column",
            "columns",
            metavar="NAME",
            multiple=True,
            help="A field or column to write beside the result. May be given several times.",
        ),
        click.option(
            "--input-format",
            type=click.Choice(["jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow"]),
            help="What INPUT holds. Default: by its ending; for `-`, by its first lines.",
        ),
        click.option(
            "--delimiter",
            metavar="C",
            callback=lambda context, parameter, value: "\t" if value == "\\t" else value,
            help="What separates the columns of CSV. [default: a comma; a tab in .tsv]",
        ),
        click.option(
            "--encoding",
            metavar="NAME",
            help="Such as utf-16, latin-1 or cp1252. [default: by the mark it begins with, else utf-8]",
        ),
        click.option(
            "--sql",
            nargs=2,
            metavar="URL QUERY",
            help="Read the rows of this query instead of INPUT: sqlite:///shop.db 'select id, body as text from posts "
            "order by id'. URL is SQLAlchemy's.",
        ),
        click.option("--pages", is_flag=True, help="Make each page of a PDF a document: its id is FILE#page=N."),
        click.option("--plain-markdown", is_flag=True, help="Read what Markdown shows, not how it is written."),
        click.option("--follow-links", is_flag=True, help="Read what links in a folder lead to, outside of it too."),
    )


def run_options(command: Callable[..., Any]) -> Any:
    """Gives a command `options`, a `RunOptions`."""
    return gathered(
        command,
        "options",
        RunOptions,
        click.option(
            "--on-duplicate",
            type=click.Choice(["keep", "fail", "last"]),
            default="keep",
            show_default=True,
            help="Of documents with one id: keep all, fail all but the first, or take only the last.",
        ),
        click.option(
            "--max-backlog-jobs",
            type=click.IntRange(min=1),
            default=DEFAULT_BACKLOG_JOBS,
            show_default=True,
            metavar="N",
            help="How many jobs are in Redis at once.",
        ),
        click.option(
            "--resume/--no-resume",
            " /--restart",
            default=True,
            show_default=True,
            help="Go on where an earlier run of OUT stopped, or begin anew.",
        ),
        click.option(
            "--store",
            metavar="FILE|URL",
            help="What any run computed, by content, model and options: what is in it is not computed again, and what "
            "is computed goes there. An SQLite file, made where it is not there, or a server: "
            "redis://host/1?ttl_s=604800&max_bytes=256000000.",
        ),
        click.option(
            "--progress",
            type=click.Choice(["auto", "bar", "lines", "json", "none"]),
            default="auto",
            show_default=True,
            help="How to say on stderr how far it is: auto is a bar on a terminal, else a line every 5 s.",
        ),
        click.option("--json", "as_json", is_flag=True, help="At the end one JSON object on standard output."),
        patience_option,
        redis_urls_option,
    )
