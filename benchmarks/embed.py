"""Documents a second: `impetus embed`'s way through Redis, beside the bare backend on the same machine.

Sides, run in turn in every round, the first to go changing from round to round:

- bare: the CPU backend in the bench's own process: all texts tokenised in one call, sorted by length over the whole
  corpus and packed under the worker's padded-token budget, the batches run one after another. No queue, no second
  process, nothing overlapped.
- impetus: `embed_documents`, which is what `impetus embed` runs, against `impetus-worker run` with the same backend,
  its model loaded and warm. Counted from before the first job is enqueued until the last vector is read.
- sentence-transformers, infinity (`--peers`): see `peer_programs/embedders.py`.

All get the same texts, distinct docstrings of Python's standard library in random order, and every side's vectors are
compared with the bare side's.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from scripts.corpus import docstrings

from impetus_backends import models
from impetus_backends.embedding.budget import USUAL
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_producer import Producer
from impetus_producer.bulk.run import EmbeddedDocument, embed_documents
from impetus_producer.documents import Document
from impetus_worker.batches.planning.packing import pack

from .means import peers
from .means.base_size import write_base_size
from .means.report import Report, json_option, median, median_within, progress, spread
from .means.servers import Server, await_true, child, cpu_of_processes, server, worker, worker_processes

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence

    from impetus_backends.embedding.devices.backend import EmbeddingBackend

_MAX_ROWS = 256
_LEAST_COSINE = 0.99999
SIZES = ("minilm", "base")
_BASE_SHARE, _FEWEST = 8, 16
"""Of the documents a model of BERT-base's size gets one in so many, and so many at least."""
_START_LIMIT_S = 600.0
"""A large model is held against the reference, in numpy, before it serves."""


@dataclass(slots=True)
class Side:
    run: Callable[[Sequence[str]], tuple[float, np.ndarray]]
    """Texts to (seconds, vectors)."""
    pids: Sequence[int]
    """Of all its processes."""
    per_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    """That they used in each round; not a number where the system does not tell."""
    least_cosine: float = 1.0


class Bare:
    """The backend and nothing else."""

    def __init__(self, folder: Path, backend: str) -> None:
        self._encoder = TextEncoder.load(folder)
        self._backend: EmbeddingBackend = make_backend(backend, folder)
        self._backend.load()
        self._max_tokens = USUAL[backend]
        self.real_tokens = self.padded_tokens = 0
        self.note: str | None = getattr(self._backend, "note", None)

    def __call__(self, texts: Sequence[str]) -> tuple[float, np.ndarray]:
        started = time.perf_counter()
        rows = [text.ids for text in self._encoder.encode(texts)]
        batches = pack(range(len(rows)), lambda at: len(rows[at]), max_tokens=self._max_tokens, max_rows=_MAX_ROWS)
        parts = [self._backend.embed([rows[at] for at in batch]) for batch in batches]
        vectors = np.empty((len(rows), parts[0].shape[1]), dtype=np.float32)
        for batch, part in zip(batches, parts, strict=True):
            vectors[batch] = part
        seconds = time.perf_counter() - started
        self.real_tokens = sum(map(len, rows))
        self.padded_tokens = sum(max(len(rows[at]) for at in batch) * len(batch) for batch in batches)
        return seconds, vectors


def pids_through_redis(on: Server) -> list[int]:
    """This process, which is the client, the server, the worker and its engine."""
    workers, engines = worker_processes(on)
    facts: Any = on.connection.info("server")
    return [os.getpid(), int(facts["process_id"]), *workers, *engines]


def cpu_s(pids: Sequence[int]) -> float:
    used = cpu_of_processes(pids)
    return math.nan if used is None else used


def through_redis(on: Server, texts: Sequence[str]) -> tuple[float, np.ndarray]:
    documents = [Document(str(index), text) for index, text in enumerate(texts)]
    started = time.perf_counter()
    results = list(embed_documents(Producer(connection=on.connection), documents))
    seconds = time.perf_counter() - started
    failed = [result for result in results if not isinstance(result, EmbeddedDocument)]
    if failed:
        raise click.ClickException(f"{len(failed)} documents failed, the first with: {failed[0]}")
    return seconds, np.asarray([result.vector for result in results if isinstance(result, EmbeddedDocument)])


class Peer:
    """A peer's program, its model loaded."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path, folder: Path) -> None:
        self._process, self._log, self.pids = process, log, [process.pid]
        self._texts, self._vectors = folder / f"{name}.json", folder / f"{name}.npy"
        self._answers = 0
        self._answer()

    def __call__(self, texts: Sequence[str]) -> tuple[float, np.ndarray]:
        self._texts.write_text(json.dumps(list(texts)))
        assert self._process.stdin is not None
        order = {"texts": str(self._texts), "vectors": str(self._vectors)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"]), np.load(self._vectors)

    def _answer(self) -> dict[str, Any]:
        """The next line of JSON in what the program says."""
        self._answers += 1
        await_true(lambda: len(self._said()) >= self._answers, self._process, self._log, _START_LIMIT_S)
        answer: dict[str, Any] = json.loads(self._said()[-1])
        return answer

    def _said(self) -> list[str]:
        lines = self._log.read_text(errors="replace").splitlines(keepends=True)
        return [line for line in lines if line.startswith("{") and line.endswith("}\n")]


@contextlib.contextmanager
def peer(name: str, environment: str, model: Path, folder: Path) -> Iterator[Peer]:
    log = folder / f"{name}.log"
    command: list[str | Path] = [peers.python_of(environment), peers.PROGRAMS / "embedders.py", name, model]
    with child(command, log) as process:
        yield Peer(name, process, log, folder)


@click.command("embed")
@click.option("--documents", type=click.IntRange(1), help="How many docstrings.  [default: 1000; --quick: 100]")
@click.option("--rounds", type=click.IntRange(1), help="How often each side runs.  [default: 3; --quick: 2]")
@click.option("--seed", default=1, show_default=True, help="Which docstrings, and in which order.")
@click.option(
    "--backend", default="cpu", show_default=True, type=click.Choice(["cpu", "mlx", "numpy", "coreml-emulated"])
)
@click.option("--peers", "with_peers", is_flag=True, help="Also sentence-transformers and Infinity (torch, minutes).")
@click.option("--size", "sizes", multiple=True, type=click.Choice(SIZES), help="MiniLM, or a model of the size of "
              f"BERT-base with seeded weights, which gets a {_BASE_SHARE}th of the documents.  "
              "[default: minilm; --peers: both]")  # fmt: skip
@click.option("--quick", is_flag=True, help="A look in some minutes: fewer documents, two rounds.")
@json_option("embed")
def command(
    documents: int | None,
    rounds: int | None,
    seed: int,
    backend: str,
    with_peers: bool,
    sizes: Sequence[str],
    quick: bool,
    json_path: Path,
) -> None:
    """Docs/s through Redis against the bare backend, and against peers."""
    documents, rounds = documents or (100 if quick else 1000), rounds or (2 if quick else 3)
    corpus = docstrings()
    random.Random(seed).shuffle(corpus)
    texts = [docstring.text for docstring in corpus[:documents]]
    report = Report("embed", documents=len(texts), rounds=rounds, seed=seed, backend=backend)
    small = models.resolve(models.DEFAULT_EMBEDDING_MODEL).folder
    wrong = []
    with tempfile.TemporaryDirectory() as made:
        for size in sizes or (SIZES if with_peers else SIZES[:1]):
            whole = size == "minilm"
            model = small if whole else write_base_size(small, Path(made))
            part = texts if whole else texts[: max(_FEWEST, len(texts) // _BASE_SHARE)]
            progress(f"{size}: {len(part)} documents")
            wrong += measure(report, size, model, part, rounds, backend, with_peers=with_peers)
    report.write(json_path)
    if wrong:
        raise click.ClickException(f"the vectors of {', '.join(wrong)} are not the bare backend's")


def measure(
    report: Report, size: str, model: Path, texts: Sequence[str], rounds: int, backend: str, *, with_peers: bool
) -> list[str]:
    """Runs all sides with one model, and says how fast they were; returns those of ours whose vectors are wrong."""
    bare = Bare(model, backend)
    with contextlib.ExitStack() as stack:
        on = stack.enter_context(server())
        options = ("--embedding-backend", backend, "--embedding-model", str(model))
        stack.enter_context(worker(on, *options, limit_s=_START_LIMIT_S))
        sides = {
            "bare": Side(bare, [os.getpid()]),
            "impetus": Side(lambda texts: through_redis(on, texts), pids_through_redis(on)),
        }
        if with_peers:
            for name, environment in (("sentence-transformers", "peers"), ("infinity", "peers-infinity")):
                try:
                    other = stack.enter_context(peer(name, environment, model, on.folder))
                except click.ClickException as error:
                    click.echo(f"{name} is left out: {error.message}", err=True)
                else:
                    sides[name] = Side(other, other.pids)
        for side in sides.values():  # all of them: each meets the shapes of its batches before it is timed
            side.run(texts)
        _, reference = bare(texts)
        for number in range(rounds):
            names = list(sides)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                side, before_s = sides[name], cpu_s(sides[name].pids)
                seconds, vectors = side.run(texts)
                side.cpu_s.append(cpu_s(side.pids) - before_s)
                side.per_s.append(len(texts) / seconds)
                side.least_cosine = min(side.least_cosine, least_cosine(vectors, reference))
                progress(f"round {number + 1}: {name} {len(texts) / seconds:.1f} docs/s")
    tell(report, size, sides, bare)
    return [f"{name} ({size})" for name in ("bare", "impetus") if sides[name].least_cosine < _LEAST_COSINE]


def tell(report: Report, size: str, sides: dict[str, Side], bare: Bare) -> None:
    rows = []
    for name, side in sides.items():
        against = [mine / theirs for mine, theirs in zip(side.per_s, sides["bare"].per_s, strict=True)]
        low, high = median_within(against)
        rows.append(
            {
                "side": name,
                "docs/s": median(side.per_s),
                "range": spread(side.per_s),
                "of bare": f"{median(against):.3f}",
                "95 %": f"{low:.3f}-{high:.3f}",
                "range of that": spread(against),
                "CPU, s": median(side.cpu_s),
                "least cosine": f"{side.least_cosine:.7f}",
            }
        )
    notes = [
        "'of bare' is the median over rounds of the ratio within a round, and '95 %' where the true one lies so surely "
        "(less so after few rounds); 'CPU' is that of all processes of a side",
        f"the corpus has {bare.real_tokens:,} tokens; the bare side's "
        f"batches pad it by {bare.padded_tokens / bare.real_tokens - 1:.1%}",
    ]
    peers_per_s = [side.per_s for name, side in sides.items() if name not in ("bare", "impetus")]
    if peers_per_s:
        against = [mine / max(theirs) for mine, *theirs in zip(sides["impetus"].per_s, *peers_per_s, strict=True)]
        notes.append(
            f"impetus against the better peer in a round: {median(against):.2f} (rounds {spread(against)}); asked: 1.5"
        )
    if bare.note:
        notes.append(bare.note)
    notes.append("asked of impetus: 0.97 of bare, and cosine 0.99999 with it")
    report.add(f"rounds of {size}", {name: side.per_s for name, side in sides.items()})
    report.table(f"docs_per_s {size}", f"Documents embedded a second, {size}", rows, notes)


def least_cosine(vectors: np.ndarray, reference: np.ndarray) -> float:
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    return float((np.einsum("ij,ij->i", vectors, reference, dtype=np.float64) / norms).min())
