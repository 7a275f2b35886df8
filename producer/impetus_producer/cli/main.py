"""The `impetus` command: its group, its errors and its end. Each command is in a module of its own.

0    done
1    a document or job failed, or something Impetus says in one sentence on stderr
2    the command line was not understood
130  interrupted; 143 and 129 ended by SIGTERM and SIGHUP; 141 nobody reads any more what is printed
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..bulk.kept.databases import NO_ROOM, NO_ROOM_ERRORS
from ..errors import ImpetusError
from ..shown import printable_lines
from .ending import Signals, drop_output, sentence_of, status_of
from .late import LateGroup
from .settings.config_file import with_config_file

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMMANDS = {
    "batch": "impetus_producer.cli.batch.group",
    "cancel": "impetus_producer.cli.jobs",
    "embed": "impetus_producer.cli.embed",
    "generate": "impetus_producer.cli.generate",
    "rerank": "impetus_producer.cli.rerank",
    "result": "impetus_producer.cli.jobs",
    "serve": "impetus_gateway.cli.serve",
    "serve-key": "impetus_gateway.cli.listing",
    "serve-webhook": "impetus_gateway.cli.listing",
    "status": "impetus_producer.cli.status",
    "top": "impetus_producer.cli.top",
}


class _Group(LateGroup):
    """What is typed is read, and done, with what goes wrong in one sentence."""

    def make_context(self, *arguments: Any, obj: Any = None, **options: Any) -> click.Context:
        signals: Signals | None = obj
        if signals is not None:
            signals.hear()
        try:
            with _sentences():
                return super().make_context(*arguments, obj=signals, **options)
        except BaseException:
            _forget(signals)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _sentences():
                return super().invoke(ctx)
        finally:
            _forget(ctx.obj)


def _forget(signals: Signals | None) -> None:
    if signals is not None:
        signals.forget()


@contextmanager
def _sentences() -> Iterator[None]:
    """Turns what goes wrong into one sentence on stderr and an exit status."""
    try:
        yield
    except ImpetusError as error:
        raise click.ClickException(printable_lines(str(error))) from None
    except KeyboardInterrupt as ended:
        # Click would say "Aborted!" and exit with 1, like any failure. On a terminal ^C stands before it.
        line_open = "\n" if sys.stderr.isatty() else ""
        click.echo(f"{line_open}{printable_lines(sentence_of(ended))}", err=True)
        raise click.exceptions.Exit(status_of(ended)) from None
    except BrokenPipeError as ended:
        drop_output()
        raise click.exceptions.Exit(status_of(ended)) from None
    except OSError as error:
        if error.filename is not None or error.errno not in NO_ROOM_ERRORS:
            raise
        drop_output()
        raise click.ClickException(f"what is printed cannot be written: {NO_ROOM}") from None


@click.group(
    cls=_Group, later=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="impetus-batch")
def cli() -> None:
    """Embeddings, generations and rerankings through a Redis queue, worked by Macs.

    \b
    Try it with nothing set up; a server and a worker are started for the time it takes:
        impetus embed docs.jsonl --output docs.parquet
        impetus generate "Name three rivers."
        impetus serve

    \b
    Against a server that is there:
        impetus embed docs.jsonl --output docs.parquet --redis-url redis://mac-mini.local:6379/0
        impetus status

    The server is the one given by --redis-url or IMPETUS_REDIS_URL, else the one that `impetus-worker run` keeps on
    this machine.
    """


with_config_file("impetus", cli)


def main() -> None:
    """The entry point of the program."""
    cli(prog_name="impetus", obj=Signals())
