"""A corpus embedded again when a part of it changed, with a store: what that costs of the first time.

Docstrings of Python's standard library in random order through `embed_documents` with `--store`'s file, against
`impetus-worker run`, its model loaded and warm; then the same with some of them changed. No better ratio can be had
than the share that changed; what is above it is the cost of asking the store.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import click
from scripts.corpus import docstrings

from impetus_producer import Document, EmbeddedDocument, Producer, Store, embed_documents

from .means.report import Report, json_option, median, progress, spread
from .means.servers import server, worker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_WARM_UP = 64


def run(producer: Producer, store: Path, texts: Sequence[str]) -> tuple[float, int]:
    """The seconds that it took, and how many texts were computed: what the store holds that it did not before."""
    documents = [Document(index, text) for index, text in enumerate(texts)]
    with Store(store) as kept:
        before, started = len(kept), time.perf_counter()
        outcomes = list(embed_documents(producer, documents, store=kept))
        seconds, computed = time.perf_counter() - started, len(kept) - before
    if failed := [outcome for outcome in outcomes if not isinstance(outcome, EmbeddedDocument)]:
        raise click.ClickException(f"{len(failed)} documents failed, the first with: {failed[0]}")
    return seconds, computed


@click.command("again")
@click.option("--documents", default=1000, show_default=True, help="How many docstrings.")
@click.option("--changed", default=0.1, show_default=True, help="Which share of them changes.")
@click.option(
    "--rounds", default=3, show_default=True, help="How often, each time with other docstrings and a new store."
)
@click.option("--seed", default=1, show_default=True)
@click.option("--backend", default="cpu", show_default=True, type=click.Choice(["cpu", "mlx", "numpy", "simulated"]))
@json_option("again")
def command(documents: int, changed: float, rounds: int, seed: int, backend: str, json_path: Path) -> None:
    """Embed a corpus again of which a part changed."""
    report = Report("again", documents=documents, changed=changed, rounds=rounds, seed=seed, backend=backend)
    choose = random.Random(seed)
    corpus = [each.text for each in docstrings(documents)]
    ratios, computed = [], []
    with server() as on, worker(on, "--embedding-backend", backend):
        producer = Producer(connection=on.connection)
        run(producer, on.folder / "warm.sqlite", corpus[:_WARM_UP])
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}")
            texts = [f"{number}: {text}" for text in choose.sample(corpus, len(corpus))]
            store = on.folder / f"store-{number}.sqlite"
            first, _ = run(producer, store, texts)
            for at in choose.sample(range(len(texts)), round(changed * len(texts))):
                texts[at] = f"changed: {texts[at]}"
            second, count = run(producer, store, texts)
            ratios.append(second / first)
            computed.append(count)
    row = {
        "documents": len(corpus),
        "changed": changed,
        "computed again": f"{max(computed):,} of {len(corpus):,}",
        "second run of the first": median(ratios),
        "range": spread(ratios),
    }
    report.table("again", "A corpus of which a part changed", [row])
    report.write(json_path)


if __name__ == "__main__":
    command()
