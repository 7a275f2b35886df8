"""Tells whether a model answers alike alone and in a batch.

Rows of unequal length are padded when they run together, and some architectures let the padding leak into the answer
or cannot merge their caches at all. That goes unseen in the text, so it is measured before any work is claimed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelError
from .prefixes import PrefixCache
from .running import Row, RunningBatch
from .sampling import Draws, Sampling

if TYPE_CHECKING:
    from .loader import LoadedModel

TOLERANCE = 0.1
"""How far a next-token distribution may move (total variation, 0 to 1). Rounding moves it far less, leaks far more."""

_TEXT = "A queue holds the work that services hand in, and a worker takes as much as its machine does well at once. "
_LENGTHS = (3, 19, 47)
_STEPS = 4
_PIECE_TOKENS = 256
"""Enough to read all three prompts together."""


def batching_fault(loaded: LoadedModel) -> str | None:
    """None when rows may run together; else one sentence on why this model must run them one at a time.

    Decodes four tokens for each of three prompts, alone and together. Raises `ModelError` for a model that cannot
    decode at all, or whose probabilities are not numbers.
    """
    import mlx.core as mx

    tokens = list(loaded.tokenizer.encode(_TEXT * 8))
    rows = [tokens[:length] for length in _LENGTHS if length + _STEPS <= loaded.context_tokens]
    try:
        alone = [_decode(loaded, [row])[0] for row in rows]
    except Exception as error:  # whatever the model raises, it cannot serve
        raise ModelError(f"the model loads and cannot generate: {error}") from error
    if any(bool(mx.isnan(probabilities).any()) for row in alone for _, probabilities in row):
        raise ModelError("the model loads, and its probabilities are not numbers (NaN)")
    try:
        together = _decode(loaded, rows)
    except Exception as error:  # noqa: BLE001  # alone it works, so it serves that way
        return f"requests run one at a time: this model cannot decode a batch ({error})"
    moved = max((_distance(mx, one, other) for one, other in zip(alone, together, strict=True)), default=0.0)
    if moved <= TOLERANCE:
        return None
    return f"requests run one at a time: in a padded batch this model's probabilities move by {moved:.2f}"


def _decode(loaded: LoadedModel, prompts: list[list[int]]) -> list[list[tuple[int, Any]]]:
    """For each prompt its greedy continuation, as (token, probabilities over the vocabulary)."""
    import mlx.core as mx

    batch = RunningBatch(
        loaded.model, (), prefill_tokens=_PIECE_TOKENS, prefixes=PrefixCache(0), solo=len(prompts) == 1
    )
    steps: list[list[tuple[int, Any]]] = [[] for _ in prompts]
    for at, prompt in enumerate(prompts):
        batch.add(Row(at, np.asarray(prompt, dtype=np.int64), _STEPS, Draws(Sampling(temperature=0))))
    try:
        while len(batch):
            for made in batch.step():
                steps[made.id].append((made.token, mx.exp(made.logprobs.astype(mx.float32))))
    finally:
        batch.close()
    return steps


def _distance(mx: Any, one: list[tuple[int, Any]], other: list[tuple[int, Any]]) -> float:
    """The largest total variation between two rows' distributions, for as long as both chose the same tokens."""
    largest = 0.0
    for (token, probabilities), (other_token, other_probabilities) in zip(one, other, strict=True):
        largest = max(largest, float(mx.abs(probabilities - other_probabilities).sum()) / 2)
        if token != other_token:
            break  # from here on the two read different texts
    return largest
