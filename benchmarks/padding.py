"""What padding adds to the docstrings' tokens in the shapes of a package: rows of one text, and rows that texts share.

All texts go through what a worker does with a backlog of bulk jobs, in random order, and through the plan by which its
backend calls the device. Lengths alone: no device is run, and none is needed.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import click
from scripts.corpus import docstrings

from impetus_backends import models
from impetus_backends.embedding.budget import USUAL
from impetus_backends.embedding.devices.packages.buckets import Bucket, plan, suiting
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_worker.batches.planning.packing import fill, pack

from .means.report import Report, json_option

if TYPE_CHECKING:
    from pathlib import Path

_MAX_ROWS = 256


@click.command("padding")
@click.option("--documents", type=click.IntRange(32), help="So many docstrings, chosen at random.  [default: all]")
@click.option("--model", default=models.DEFAULT_EMBEDDING_MODEL, show_default=True, metavar="FOLDER|ID",
              help="Whose tokens, and whose longest text.")  # fmt: skip
@json_option("padding")
def command(documents: int | None, model: str, json_path: Path) -> None:
    """Padding in a package's shapes: one text a row, and several."""
    files = models.resolve(model)
    texts = [docstring.text for docstring in docstrings()]
    random.Random(1).shuffle(texts)
    lengths = [len(text.ids) for text in TextEncoder.load(files.folder).encode(texts[:documents])]
    longest = read_config(files.folder).text.max_tokens
    report = Report("padding", documents=len(lengths), tokens=sum(lengths), model=files.name)
    tokens = USUAL["coreml"]
    rows = []
    for name, batches, buckets in (
        ("one text a row", pack(lengths, int, max_tokens=tokens, max_rows=_MAX_ROWS), suiting(longest)),
        ("shared rows", fill(lengths, int, max_tokens=tokens, max_rows=_MAX_ROWS), suiting(longest, packed=True)),
    ):
        rows.append(_row(name, batches, buckets, sum(lengths)))
    report.table("padding", "tokens that the device runs, of those that there are", rows)
    report.write(json_path)


def _row(name: str, batches: list[list[int]], buckets: tuple[Bucket, ...], tokens: int) -> dict[str, object]:
    calls = [call for batch in batches for call in plan(batch, buckets)]
    run = sum(call.bucket.tokens for call in calls)
    shapes = " ".join(map(str, buckets))
    return {"bulk": name, "padding, %": 100 * (run / tokens - 1), "calls": len(calls), "shapes": shapes}
