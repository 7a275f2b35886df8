"""What tokenising costs a worker, and whose work it is: the tokenizer library's, or what is done around it.

Sides, in turn in every round, over the same texts in batches of a job of 64:

- library: `encode_batch_fast` of the model's tokenizer alone.
- worker: `TextEncoder.encode`, as a worker's reader calls it: rows, cut to what the model reads, as arrays.
- threads: the same by so many threads at a time, each with an encoder of its own, of the models by turns.

The library uses all cores; CPU time is that of the whole process, whatever the number of its threads. No queue, no
device.
"""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from impetus_backends import models
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.texts.tokenizer import read_tokenizer
from impetus_backends.embedding.texts.tokens import TextEncoder

from .means.report import Report, json_option, median, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_TEXTS_A_JOB = 64
_WORDS = (
    "a queue holds the work that services hand in and a worker takes as much of it as its machine does well at once"
)


@click.command("tokens")
@click.option("--texts", default=8192, show_default=True, type=click.IntRange(64))
@click.option("--tokens", default=55, show_default=True, type=click.IntRange(4), help="Of a text, its ends included.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--model", "names", default=[models.DEFAULT_EMBEDDING_MODEL], show_default=True, multiple=True,
              metavar="FOLDER|ID", help="Of several the threads take all, the other sides the first.")  # fmt: skip
@click.option("--threads", default=8, show_default=True, type=click.IntRange(1))
@json_option("tokens")
def command(texts: int, tokens: int, rounds: int, names: Sequence[str], threads: int, json_path: Path) -> None:
    """CPU time of a text's tokens: in the library, around it, and by several threads for several models."""
    files = [models.resolve(name) for name in names]
    tokenizer = read_tokenizer(read_config(files[0].folder))
    encoders = [TextEncoder.load(files[number % len(files)].folder) for number in range(threads)]
    encoder = encoders[0]
    chosen, words = random.Random(1), _WORDS.split()
    made = [" ".join(chosen.choice(words) for _ in range(tokens - 2)) for _ in range(texts)]
    jobs = [made[at : at + _TEXTS_A_JOB] for at in range(0, texts, _TEXTS_A_JOB)]
    served = " and ".join(each.name for each in files)
    report = Report("tokens", texts=texts, tokens=len(encoder.encode(made[:1])[0].ids), model=served, threads=threads)

    def by_itself(encode: Callable[[Sequence[str]], Any]) -> None:
        for job in jobs:
            encode(job)

    def by_threads() -> None:
        def share(number: int) -> None:
            for job in jobs[number::threads]:
                encoders[number].encode(job)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(share, range(threads)))

    sides: dict[str, Callable[[], None]] = {
        "library": partial(by_itself, tokenizer.encode_batch_fast),
        "threads": by_threads,
        "worker": partial(by_itself, encoder.encode),
    }
    cpu_us: dict[str, list[float]] = {name: [] for name in sides}
    per_s: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sorted(sides, reverse=number % 2 > 0):
            started, cpu = time.perf_counter(), time.process_time()
            sides[name]()
            cpu_us[name].append(1e6 * (time.process_time() - cpu) / texts)
            per_s[name].append(texts / (time.perf_counter() - started))
    of_library = [ours / theirs for ours, theirs in zip(cpu_us["worker"], cpu_us["library"], strict=True)]
    rows = [
        {"side": name, "CPU us a text": median(cpu_us[name]), "rounds": spread(cpu_us[name]),
         "texts a CPU second": 1e6 / median(cpu_us[name]), f"texts/s on {os.cpu_count()} cores": median(per_s[name])}
        for name in sides
    ]  # fmt: skip
    faster = [many / one for many, one in zip(per_s["threads"], per_s["worker"], strict=True)]
    notes = [
        f"of the library's CPU time the worker takes {median(of_library):.2f} (rounds {spread(of_library)})",
        f"{threads} threads make {median(faster):.2f} times the texts a second of one (rounds {spread(faster)}): the "
        "library divides a job among all cores already, so that they bound both",
    ]
    report.table("tokens", "tokenising", rows, notes)
    report.write(json_path)
