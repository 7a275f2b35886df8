"""Generation jobs, and an engine for them, for tests of batching without Redis, processes or models."""

from __future__ import annotations

import itertools
import json
import zlib
from typing import TYPE_CHECKING

from impetus_backends import protocol
from impetus_backends.protocol import Answer, EngineInfo, Generated, GenerationWork
from impetus_producer.contract import GENERATE_FUNCTION
from impetus_worker.batches.generation import GenerationBatcher
from impetus_worker.leases.claims import ClaimedJob
from impetus_worker.leases.outcomes import News, Outcome, Said

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from impetus_backends.protocol import Event


INFO = EngineInfo(
    kind="generation", backend="fake", device="fake", model="m", model_aliases=("m",), fingerprint="f", precision="4bit"
)
IDS = itertools.count()
BULK = "generation-bulk"


def make_batcher(max_concurrent: int = 4, clock: Callable[[], float] = lambda: 0.0) -> GenerationBatcher:
    """By its own clock, which stands still unless another is given, it reads everything at once."""
    return GenerationBatcher(INFO, worker="w", max_concurrent=max_concurrent, clock=clock)


def job(prompt: str | None = "p", queue: str = "generation", timeout_s: int = 180, **fields: object) -> ClaimedJob:
    data = json.dumps([GENERATE_FUNCTION, None, [{"prompt": prompt, **fields}], {}]).encode()
    hashed = {b"data": zlib.compress(data), b"timeout": str(timeout_s).encode()}
    return ClaimedJob(f"job{next(IDS)}", "e", queue, hashed, 0.0)


def take(batcher: GenerationBatcher, jobs: list[ClaimedJob], now: float = 0.0) -> list[Outcome]:
    """Gives it jobs, and has it read them."""
    batcher.add(jobs)
    return batcher.read(now)


def done(work: GenerationWork) -> Generated:
    return Generated(work.id, (Answer(f"after {work.prompt}", "stop"),), 3, 4, 0.1, 0.2, "m", "f")


def admitted(batcher: GenerationBatcher) -> list[GenerationWork]:
    return list(iter(lambda: batcher.next_work(1.0), None))


def events_of(batcher: GenerationBatcher, *events: Event) -> list[News]:
    return [news for event in events for news in batcher.absorb(event, 1.0)]


def cut(work: GenerationWork, text: str) -> Generated:
    return Generated(work.id, (Answer(text, "cancelled"),), 3, 4, 0.1, 0.2, "m", "f")


def said(news: Sequence[News]) -> list[tuple[str, int, str]]:
    return [(each.event.value, each.at, each.text) for each in news if isinstance(each, Said)]


def begin(batcher: GenerationBatcher, works: Sequence[GenerationWork], now: float = 1.0) -> None:
    for work in works:
        batcher.absorb(protocol.Started(work.id), now)


def prompts(works: Sequence[GenerationWork]) -> list[str | None]:
    return [work.prompt for work in works]
