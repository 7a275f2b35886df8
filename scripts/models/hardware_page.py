#!/usr/bin/env python3
"""docs/hardware.md, and the JSON schema beside it, of what Macs' owners sent.

Only what `impetus-worker verify --submit` wrote on a Mac is taken: a board that was edited, contradicts itself or
claims more than its chip can do is refused, and nothing is written.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from impetus_backends.verified.board import MEASURED, Board, BoardError, read_board, to_json
from impetus_backends.verified.claims import CLAIMS
from impetus_backends.verified.roofs import ROOFS, Roofs

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parents[2]
BOARDS = ROOT / "benchmarks" / "boards"
PAGE = ROOT / "docs" / "hardware.md"
SCHEMA = "board.schema.json"

_HEAD = """\
# Hardware

Written by `scripts/hardware` of the boards in `benchmarks/boards`. A board is what `impetus-worker verify` found on one
Mac, sent by its owner. Nobody on this project has a Mac.

## What Macs said
"""
_SENDING = """\
## Send yours

    impetus-worker verify --submit

takes some minutes the first time, writes `impetus-board-….json` into the current folder, and opens the page on which to
attach it (where there is no browser it prints the address). Look at the file first: it has the chip, system, versions,
verdicts and figures, and no name of a person, host or folder. A line that failed is worth as much as one that passed.

[board.schema.json](board.schema.json) is its JSON schema. `scripts/hardware FILE` takes it in, and refuses one that was
edited: verdicts must follow from figures, figures must be possible, a time must not beat the chip's roof, every claim
must have its line, and the digest must be that of the content.
"""
_ROOFS = """\
## Roofs

What a chip can do at most, to hold times against: a time's share of the roof is the least time in which the chip could
compute and read what is needed, of the time that it took. GB/s and TFLOP/s are published figures, of the largest
variant of each chip, and none was measured by us; sources are in
[`roofs.py`](../backends/impetus_backends/verified/roofs.py).
"""


def read_measured(file: Path) -> Board:
    """Raises `BoardError` for what is no board, or was not measured."""
    board = read_board(file)
    if board.origin != MEASURED:
        raise BoardError(f"{file.name} is no board of a Mac: {board.origin}")
    return board


def place_of(board: Board, folder: Path) -> Path:
    """Where a board is kept."""
    chip = re.sub(r"[^a-z0-9]+", "-", board.machine.chip.lower())
    return folder / f"{chip}-{board.measured_on}-{board.digest[:8]}.json"


def in_order(boards: Iterable[Board]) -> list[Board]:
    """By chip and day."""
    return sorted(boards, key=lambda board: (board.machine.kind, board.measured_on, board.digest))


def page(boards: list[Board]) -> str:
    """The whole page."""
    told = _claims(boards) + "\n\n" + "\n".join(map(_of_one, boards)) if boards else "None yet."
    if not boards:
        told += " What is asked of one:\n\n" + _claims([])
    return "\n".join([_HEAD, told, "", _SENDING, _ROOFS, _roofs(), ""])


def _claims(boards: list[Board]) -> str:
    heads = ["claim", "asked", *(f"{board.machine.chip}, {board.measured_on}" for board in boards)]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for key, claim in CLAIMS.items():
        lines.append(_row([claim.name, claim.asked, *(_cell(board, key) for board in boards)]))
    return "\n".join(lines)


def _cell(board: Board, key: str) -> str:
    line = board.line(key)
    if line.figure is None:
        return str(line.verdict)
    unit = "x" if line.figure.unit == "x" else f" {line.figure.unit}"
    share = f", {line.figure.share_of_roof:.0%} of the roof" if line.figure.share_of_roof else ""
    return f"{line.verdict}: {line.figure.value:.3g}{unit}{share}"


def _of_one(board: Board) -> str:
    machine = board.machine
    versions = ", ".join(f"{name} {version}" for name, version in board.versions.items())
    lines = [
        f"### {machine.chip}, {board.measured_on}",
        "",
        f"{machine.model or 'A Mac'}, {machine.memory_gib} GiB, {machine.cores} cores, macOS {machine.macos} "
        f"{machine.build}; {board.embedding_model}; {versions}.",
        "",
        _row(["line", "verdict", "what was found"]),
        _row(["---"] * 3),
        *(_row([line.name, str(line.verdict), line.detail]) for line in board.lines),
        "",
    ]
    return "\n".join(lines)


def _roofs() -> str:
    def figure(value: float | None) -> str:
        return "" if value is None else f"{value:g}"

    def row(kind: tuple[int, str], roofs: Roofs) -> str:
        number, tier = kind
        name = f"M{number}" + ("" if tier == "base" else f" {tier}")
        return _row([name, figure(roofs.gigabytes_s), figure(roofs.neural_engine_tflops), figure(roofs.gpu_tflops)])

    heads = ["chip", "memory, GB/s", "Neural Engine, TFLOP/s in float16", "GPU, TFLOP/s in float16"]
    return "\n".join([_row(heads), _row(["---"] * 4), *(row(kind, roofs) for kind, roofs in ROOFS.items())])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(map(_text, cells)) + " |"


def _text(cell: str) -> str:
    """What others wrote stays text: no new cell, and nothing that a page would run or link."""
    return re.sub(r"[|<>\[\]`\n]", " ", cell).replace("://", ": //").replace("www.", "www .")


def schema() -> str:
    return json.dumps(Board.model_json_schema(), indent=2) + "\n"


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--boards", "folder", default=BOARDS, type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Where boards are kept.  [default: benchmarks/boards]")  # fmt: skip
@click.option("--page", "written", default=PAGE, type=click.Path(dir_okay=False, path_type=Path),
              help="The page to write, with the form's schema beside it.  [default: docs/hardware.md]")  # fmt: skip
def main(files: tuple[Path, ...], folder: Path, written: Path) -> None:
    """Take in the boards in FILES, which `impetus-worker verify --submit` wrote, and write docs/hardware.md anew."""
    try:
        new = {place_of(board, folder): board for board in map(read_measured, files)}
        kept = {file: read_measured(file) for file in folder.glob("*.json")}
    except BoardError as error:
        raise click.ClickException(str(error)) from None
    for place, board in new.items():
        place.write_text(to_json(board), encoding="utf-8")
        click.echo(f"taken in: {place}")
    boards = in_order({**kept, **new}.values())
    written.write_text(page(boards), encoding="utf-8")
    (written.parent / SCHEMA).write_text(schema(), encoding="utf-8")
    click.echo(f"{written}: {len(boards)} boards")


if __name__ == "__main__":
    main(prog_name="scripts/hardware")
