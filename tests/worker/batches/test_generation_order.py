"""Bulk jobs that begin alike go together, so that the engine finds their beginning in memory."""

from __future__ import annotations

from collections import deque
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
from scripts.models.make_tiny_model import make_tiny_model

from impetus_backends.dispatcher import open_engine
from impetus_backends.engine_config import EngineConfig
from impetus_backends.protocol import Generated
from impetus_worker.batches import generation

from .generating import BULK, job, make_batcher, take

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(find_spec("mlx_lm") is None, reason="MLX is not installed (pip install 'impetus-batch[mlx]')"),
]
STEMS = [chr(97 + number) * 3 + " every question has the same confident answer. " * 20 for number in range(4)]
PLACES = 8


def spared_tokens(folder: Path) -> int:
    """Runs a backlog of which every job begins otherwise than the one before; what was found in memory, where prompts
    of one beginning have room there."""
    backlog = deque(job(STEMS[at % 4] + str(at), max_tokens=2, temperature=0, queue=BULK) for at in range(24))
    engine = open_engine(EngineConfig("generation", str(folder), max_concurrent=PLACES, prefix_cache_bytes=300_000))
    batcher = make_batcher(PLACES)
    spared = ended = 0
    while ended < 24:
        room = batcher.room()
        take(batcher, [backlog.popleft() for _ in range(min(len(backlog), room.bulk or room.ahead))])
        while work := batcher.next_work(1.0):
            engine.admit(work)
        for event in engine.step():
            batcher.absorb(event, 1.0)
            if isinstance(event, Generated):
                spared, ended = spared + event.cached_tokens, ended + 1
    engine.close()
    return spared


def test_prompts_that_begin_alike_are_spared_more_than_in_the_order_of_their_coming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_model(tmp_path / "tiny")
    chosen = spared_tokens(folder)
    monkeypatch.setattr(generation, "_AHEAD_SHARE", 10**9)
    as_they_came = spared_tokens(folder)
    assert chosen > 2 * as_they_came > 0, (chosen, as_they_came)
