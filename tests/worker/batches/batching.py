"""Embedding jobs, and an engine for them, for tests of batching without Redis, processes or models."""

from __future__ import annotations

import itertools
import json
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.protocol import Embedded, EmbeddingWork, EngineInfo
from impetus_producer.contract import EMBED_FUNCTION, EmbeddingResult
from impetus_worker.allowed import NOTHING
from impetus_worker.batches.embedding import EmbeddingBatcher
from impetus_worker.batches.reading.rows import EmbeddingRequests
from impetus_worker.batches.results import EmbeddingResults
from impetus_worker.errors import JobTimeoutError
from impetus_worker.leases.claims import ClaimedJob
from impetus_worker.leases.outcomes import Failed, Finished, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from impetus_backends.protocol import Spans
    from impetus_worker.batches.reading.rows import TextEncoder

INFO = EngineInfo(
    kind="embedding", backend="fake", device="fake", model="m", model_aliases=("m", "org/m"), fingerprint="f",
    precision="fp32", dimensions=4, max_tokens=50,
)  # fmt: skip
BULK = "embedding-bulk"
IDS = itertools.count()


@dataclass
class Encoded:
    ids: np.ndarray
    lost: int
    chunks: Spans = ()


class OneTokenAWord:
    """Words are numbers, and tokens are these numbers; chunks are of numbers of one digit."""

    def prompt(self, input_type: str | None = None, name: str | None = None) -> str:
        return ""

    def encode(self, texts: Sequence[str], *, prompt: str | None = None) -> list[Encoded]:
        rows = [np.array([int(word) for word in text.split()], dtype=np.int32) for text in texts]
        return [Encoded(row[: INFO.max_tokens], max(0, len(row) - INFO.max_tokens)) for row in rows]

    def encode_chunks(self, texts: Sequence[tuple[str, Spans]], *, prompt: str | None = None) -> list[Encoded]:
        rows = self.encode([text for text, _ in texts])
        return [
            replace(row, chunks=[((begin + 1) // 2, (end + 1) // 2) for begin, end in chunks])
            for row, (_, chunks) in zip(rows, texts, strict=True)
        ]


def make_batcher(
    max_wait_s: float = 1.0, max_tokens: int = 20, max_rows: int = 8, clock: Callable[[], float] = lambda: 0.0
) -> EmbeddingBatcher:
    """By its own clock, which stands still unless another is given, reading is never cut short."""
    return batcher_of(
        OneTokenAWord(), max_batch_texts=max_rows, max_batch_tokens=max_tokens, max_wait_s=max_wait_s, clock=clock
    )


def batcher_of(encoder: TextEncoder, **options: Any) -> EmbeddingBatcher:
    """For embeddings of `INFO`, whose texts that tokenizer reads."""
    requests, results = EmbeddingRequests(INFO, [encoder], NOTHING), EmbeddingResults("w")
    return EmbeddingBatcher(requests, results, **options)


def job(*texts: str, queue: str = "embedding", timeout_s: int = 180, **fields: object) -> ClaimedJob:
    data = json.dumps([EMBED_FUNCTION, None, [{"input": list(texts), **fields}], {}]).encode()
    hashed = {b"data": zlib.compress(data), b"timeout": str(timeout_s).encode()}
    return ClaimedJob(f"job{next(IDS)}", "e", queue, hashed, 0.0)


def words(count: int, word: int = 7) -> str:
    return " ".join([str(word)] * count)


def take(batcher: EmbeddingBatcher, jobs: list[ClaimedJob], now: float = 0.0) -> list[Outcome]:
    """Gives it jobs, and has it read them."""
    batcher.add(jobs)
    return batcher.read(now)


def given(batcher: EmbeddingBatcher, now: float = 1000.0) -> EmbeddingWork:
    """The next work; there must be some."""
    work = batcher.next_work(now)
    assert work is not None
    return work


def run(work: EmbeddingWork, device_s: float = 0.001) -> Embedded:
    """A device whose vector is the row's length, its first token, and zeros."""
    return Embedded(work.id, np.array([[len(row), row[0], 0, 0] for row in work.rows], np.float32), device_s)


def drain(batcher: EmbeddingBatcher, now: float = 1000.0) -> tuple[list[EmbeddingWork], list[Outcome]]:
    works, outcomes = [], []
    while (work := batcher.next_work(now)) is not None:
        works.append(work)
        outcomes += batcher.absorb(run(work), now)
    return works, outcomes


def lengths(work: EmbeddingWork | None) -> list[int]:
    assert work is not None
    return [len(row) for row in work.rows]


def vectors(outcome: Outcome) -> list[list[float]]:
    assert isinstance(outcome, Finished)
    result = EmbeddingResult.model_validate(json.loads(outcome.result), strict=False)
    return [list(map(float, row)) for row in result.vectors]


def error(outcome: Outcome) -> Exception:
    assert isinstance(outcome, Failed)
    return outcome.error


def out_of_time(late: ClaimedJob) -> Failed:
    return Failed(late, JobTimeoutError("the job ran longer than its timeout"))
