"""`impetus-worker verify --submit`: the report as a board in a file, and the page on which its owner sends it.

Nothing is sent from here: a browser opens, or the page's address is printed, and whoever owns the Mac decides.
"""

from __future__ import annotations

import os
import re
import webbrowser
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from impetus_backends.machine.hardware import Hardware
    from impetus_backends.verified.board import Board
    from impetus_backends.verified.check import Check

_MOST_URL = 7_500
"""Characters: GitHub refuses addresses beyond about 8,000."""


def submit(hardware: Hardware, model: str, versions: Mapping[str, str], checks: Sequence[Check]) -> None:
    """Writes the board and leads to the page. Raises `ClickException` where there is no board to be made of this."""
    from impetus_backends.cache import write_whole
    from impetus_backends.verified.board import BoardError, make_board, to_json

    try:
        board = make_board(hardware, model, versions, checks, on=datetime.now(UTC).date())
    except BoardError as error:
        raise click.ClickException(str(error)) from None
    file = Path(f"impetus-board-{re.sub(r'[^a-z0-9]+', '-', board.machine.chip.lower())}-{board.measured_on}.json")
    try:
        write_whole(file, to_json(board))
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}") from None
    click.echo(f"written: {file}: chip, system, versions, verdicts and figures; no name, host or folder", err=True)
    issues = issues_url()
    if issues is None:
        click.echo("this build names no repository: send the file to whom you have it from", err=True)
        return
    url = issue_page(issues, board, file.name)
    click.echo(f"send it there: {url}", err=True)
    # Over ssh a browser would open where nobody looks.
    if "SSH_CONNECTION" not in os.environ:
        webbrowser.open(url)


def issues_url() -> str | None:
    """Where the repository takes issues, as the package's own metadata says."""
    for entry in metadata.metadata("impetus-batch").get_all("Project-URL") or []:
        label, _, url = entry.partition(", ")
        if label == "Issues":
            return str(url)
    return None


def issue_page(issues: str, board: Board, file_name: str) -> str:
    """The address of the form for a new issue, filled in: with the board where an address may be as long as that."""
    from impetus_backends.verified.board import to_json

    told = [f"- {line.name}: **{line.verdict}**" for line in board.lines if line.figure is not None]
    head = "\n".join([f"{board.machine.chip}, macOS {board.machine.macos}", "", *told, ""])
    title = f"Board: {board.machine.chip}, macOS {board.machine.macos}"
    whole = f"{issues}/new?" + urlencode({"title": title, "body": f"{head}\n```json\n{to_json(board)}```\n"})
    if len(whole) <= _MOST_URL:
        return whole
    return f"{issues}/new?" + urlencode({"title": title, "body": f"{head}\nPlease attach the file {file_name} here.\n"})
