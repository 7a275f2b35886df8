"""How many rows decode together: as a device's own times say, which grow with rows in steps and not in a line.

A few counts are timed when a model has loaded, each with rows that are as good as any: they have one prompt, which is
read once. Of those whose step is no longer than somebody who reads along would wait, the one that makes the most tokens
a second is chosen; of several that make about as many, the least, for its rows have the least to wait for.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .batch.row import Row
from .batch.running import RunningBatch
from .batch.sampling import Draws, Sampling
from .memory import measure_row_cost, weights_bytes
from .prefixes import PrefixCache
from .row_curves import LONGEST_OF_ONE, LONGEST_STEP_S, Bandwidth, RowCurve

if TYPE_CHECKING:
    from collections.abc import Callable

    from .models.loader import LoadedModel

COUNTS = (1, 2, 4, 8, 12, 16, 24, 32, 48)
_PROMPT_TOKENS = 160
_WARM_STEPS, _TIMED_STEPS = 2, 4
_SAMPLE = Path(__file__).with_name("sample.txt")


def measure_rows(
    loaded: LoadedModel,
    spare_bytes: int | None = None,
    *,
    bandwidth: Bandwidth | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> RowCurve:
    """Times a step with more and more rows, until one is too long or they would take more than half of `spare_bytes`.

    `bandwidth`: what the curve is held against. Takes some tens of steps. The calling thread must be the one that
    loaded the model.
    """
    prompt_tokens = min(_PROMPT_TOKENS, loaded.context_tokens // 2)
    answer_tokens = loaded.context_tokens - prompt_tokens
    sample = loaded.tokenizer.encode(_SAMPLE.read_text(encoding="utf-8"))
    prompt = np.resize(np.asarray(sample, dtype=np.int64), prompt_tokens)
    cost = measure_row_cost(loaded.model)
    batch = RunningBatch(loaded.model, (), prefill_tokens=prompt_tokens, prefixes=PrefixCache(1 << 30))
    points: list[tuple[int, float]] = []
    try:
        for rows in COUNTS:
            if points and spare_bytes is not None and 2 * cost.batch_bytes(rows, 2 * prompt_tokens) > spare_bytes:
                break
            for at in range(len(batch), rows):
                batch.add(Row(at, prompt, answer_tokens, Draws(Sampling(temperature=0))))
            points.append((rows, _step_s(batch, rows, clock)))
            if points[-1][1] > max(LONGEST_STEP_S, LONGEST_OF_ONE * points[0][1]):
                break
    finally:
        batch.close()
    row_bytes = cost.fixed_bytes + prompt_tokens * cost.token_bytes
    return RowCurve(tuple(points), weights_bytes(loaded.model), row_bytes, bandwidth)


def _step_s(batch: RunningBatch, rows: int, clock: Callable[[], float]) -> float:
    """The shortest of a few steps: whatever else the machine does only adds to one."""
    while len(batch.step()) < rows:
        pass
    for _ in range(_WARM_STEPS):
        batch.step()
    took: list[float] = []
    for _ in range(_TIMED_STEPS):
        began = clock()
        batch.step()
        took.append(clock() - began)
    return max(min(took), 1e-9)
