"""`impetus batch submit`, `status`, `cancel`, `output`: batches that a gateway keeps and runs."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ...batches.lines import survey
from ...batches.objects import OVER
from ...batches.remote import RemoteBatches
from ...errors import ImpetusError, InvalidRequestError
from ...shown import printable
from ...writing.drafts import Draft
from .run import refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CommandT = TypeVar("CommandT", bound="Callable[..., Any]")
KEY_VARIABLE = "IMPETUS_API_KEY"
_SHOWN = 20


def _gateway_option(command: CommandT) -> CommandT:
    return click.option(
        "--gateway", "url", default="http://127.0.0.1:8000", show_default=True, metavar="URL",
        envvar="IMPETUS_GATEWAY_URL", show_envvar=True,
        help=f"Where `impetus serve` is; its key, if it wants one, is in {KEY_VARIABLE}.",
    )(command)  # fmt: skip


def _remote(url: str) -> RemoteBatches:
    return RemoteBatches(url, os.environ.get(KEY_VARIABLE))


@click.command(short_help="Have a gateway run a file of requests.")
@click.argument("source", metavar="IN.jsonl", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--window", "completion_window", default="24h", show_default=True, metavar="TIME",
    help="What is not answered by then expires: minutes, hours or days, as 30m, 8h or 7d.",
)  # fmt: skip
@click.option("--metadata", multiple=True, metavar="NAME=VALUE", help="To find it again. May be given several times.")
@_gateway_option
def submit(source: Path, completion_window: str, metadata: tuple[str, ...], url: str) -> None:
    """Uploads IN.jsonl, whose lines are all for one endpoint, and prints the id of the batch made of it.

    \b
        impetus batch submit requests.jsonl --window 8h
        impetus batch status batch_…
        impetus batch output batch_… -o answers.jsonl
    """
    with source.open("rb") as file:
        found = survey(file)
    refuse(found)
    if len(found.urls) > 1:
        raise InvalidRequestError(f"a batch has one endpoint, and the lines ask for {', '.join(sorted(found.urls))}")
    (endpoint,) = found.urls
    made = _remote(url).submit(source, endpoint, completion_window, _pairs(metadata))
    click.echo(printable(str(made["id"])))


def _pairs(written: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for each in written:
        name, separator, value = each.partition("=")
        if not separator:
            raise click.UsageError("--metadata is NAME=VALUE")
        pairs[name] = value
    return pairs


@click.command(short_help="Say how far batches are.")
@click.argument("batch_id", metavar="[BATCH]", required=False)
@click.option("--json", "as_json", is_flag=True, help="As OpenAI's API has it.")
@_gateway_option
def status(batch_id: str | None, as_json: bool, url: str) -> None:
    """Says how far BATCH is, or the newest of all batches."""
    found = [_remote(url).batch(batch_id)] if batch_id is not None else _remote(url).batches(_SHOWN)
    for each in found:
        click.echo(json.dumps(each) if as_json else printable(_line(each)))
        if not as_json and batch_id is not None:
            for error in ((each.get("errors") or {}).get("data") or [])[:_SHOWN]:
                where = "" if error.get("line") is None else f"line {error['line']}: "
                click.echo(printable(f"  {where}{error.get('message')}"))


def _line(shown: Mapping[str, Any]) -> str:
    counts = shown.get("request_counts") or {}
    total, completed, failed = (counts.get(name, 0) for name in ("total", "completed", "failed"))
    made = datetime.fromtimestamp(shown["created_at"]).isoformat(" ", "minutes")
    return f"{shown['id']}  {shown['status']:<11}  {completed:,} of {total:,} answered, {failed:,} failed  {made}"


@click.command(short_help="Cancel a batch.")
@click.argument("batch_id", metavar="BATCH")
@_gateway_option
def cancel(batch_id: str, url: str) -> None:
    """Cancels BATCH. What was answered by then is its output."""
    click.echo(printable(_line(_remote(url).cancel(batch_id))))


@click.command(short_help="Fetch what a batch answered.")
@click.argument("batch_id", metavar="BATCH")
@click.option(
    "--output", "-o", required=True, metavar="OUT.jsonl", type=click.Path(dir_okay=False, path_type=Path),
    help="Where answers go. Errors go to OUT.jsonl.errors.jsonl.",
)  # fmt: skip
@_gateway_option
def output(batch_id: str, output: Path, url: str) -> None:
    """Fetches the answers and errors of BATCH, which is over. The exit status is 1 where some requests have none."""
    remote = _remote(url)
    shown = remote.batch(batch_id)
    if shown["status"] not in OVER:
        raise ImpetusError(f"the batch is not over: {_line(shown)}")
    for file_id, path in (
        (shown.get("output_file_id"), output),
        (shown.get("error_file_id"), output.with_name(f"{output.name}.errors.jsonl")),
    ):
        if file_id is not None:
            _fetch(remote, file_id, path)
    click.echo(printable(_line(shown)), err=True)
    if shown["status"] != "completed" or shown["request_counts"]["failed"]:
        raise click.exceptions.Exit(1)


def _fetch(remote: RemoteBatches, file_id: str, path: Path) -> None:
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Draft(path, Path(folder))
        try:
            remote.download(file_id, draft.file)
            draft.publish()
        finally:
            draft.close()
