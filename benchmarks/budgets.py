"""Documents a second of the bare MLX backend by padded tokens a batch: as it serves, and with its model never compiled.
What a GPU makes of batches, before any queue.
"""

from __future__ import annotations

import random
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from scripts.corpus import docstrings

from impetus_backends import models
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.compiled import run
from impetus_backends.embedding.devices.mlx import MLXEmbeddingBackend
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_worker.batches.planning.packing import pack

from .embed import SIZES, least_cosine
from .means.base_size import write_base_size
from .means.report import Report, json_option, median, progress, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_ROWS = 4096
_UNTIMED = 7
"""Passes in which a shape is made, and finds out how it runs best."""


@click.command("budgets")
@click.option("--documents", default=3000, show_default=True, type=click.IntRange(32), help="How many docstrings.")
@click.option("--budget", "budgets", multiple=True, default=(4096, 32768), show_default=True, type=click.IntRange(512),
              help="Padded tokens a batch; may be given more than once.")  # fmt: skip
@click.option("--size", default="base", show_default=True, type=click.Choice(SIZES), help="MiniLM, or a model of the "
              "size of BERT-base with seeded weights.")  # fmt: skip
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="How often each side runs.")
@json_option("budgets")
def command(documents: int, budgets: Sequence[int], size: str, rounds: int, json_path: Path) -> None:
    """Docs/s of the bare MLX backend, by tokens a batch, compiled and not."""
    corpus = docstrings()
    random.Random(1).shuffle(corpus)
    texts = [docstring.text for docstring in corpus[:documents]]
    report = Report("budgets", documents=len(texts), rounds=rounds, size=size)
    small = models.resolve(models.DEFAULT_EMBEDDING_MODEL).folder
    with tempfile.TemporaryDirectory() as made:
        folder = small if size == "minilm" else write_base_size(small, Path(made))
        rows = [text.ids for text in TextEncoder.load(folder).encode(texts)]
        sides = {"not compiled": _backend(folder), "as it serves": _backend(folder)}
        plain = sides["not compiled"]
        plain.run_by = {packed: partial(run, plain.function(packed=packed)) for packed in (False, True)}
        told, reference = [], None
        for budget in budgets:
            batches = pack(range(len(rows)), lambda at: len(rows[at]), max_tokens=budget, max_rows=_MAX_ROWS)
            rates: dict[str, list[float]] = {name: [] for name in sides}
            cosines = dict.fromkeys(sides, 1.0)
            for number in range(_UNTIMED + rounds):
                for name, side in sides.items():
                    seconds, vectors = _timed(side, rows, batches)
                    reference = vectors if reference is None else reference
                    cosines[name] = min(cosines[name], least_cosine(vectors, reference))
                    if number >= _UNTIMED:
                        rates[name].append(len(rows) / seconds)
                        progress(f"{budget} tokens, {name}: {rates[name][-1]:.0f} docs/s")
            for name, made_s in rates.items():
                told.append({"tokens a batch": budget, "side": name, "docs/s": median(made_s), "range": spread(made_s),
                             "least cosine to the first": f"{cosines[name]:.7f}"})  # fmt: skip
        device = sides["as it serves"]
        report.table("docs_per_s", f"Documents a second, bare: mlx on {device.device}, {device.precision}", told)
    report.write(json_path)


def _backend(folder: Path) -> MLXEmbeddingBackend:
    backend = make_backend("mlx", folder)
    assert isinstance(backend, MLXEmbeddingBackend)
    backend.load()
    return backend


def _timed(
    backend: MLXEmbeddingBackend, rows: Sequence[np.ndarray], batches: Sequence[Sequence[int]]
) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    parts = [backend.embed([rows[at] for at in batch]) for batch in batches]
    seconds = time.perf_counter() - started
    vectors = np.empty((len(rows), parts[0].shape[1]), dtype=np.float32)
    for batch, part in zip(batches, parts, strict=True):
        vectors[list(batch)] = part
    return seconds, vectors
