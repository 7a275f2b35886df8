"""How much memory the requests that run together need for their keys and values, and whether one more has room.

Rows of a batch are padded to the longest of them, so what a batch needs is its rows times its longest, prompt and
answer together: an answer is counted in full from the start, for memory that runs out in the middle helps nobody.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..machine import heap

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

STEP_TOKENS = 256
"""mlx-lm's caches grow by so many tokens at a time, so a row may have room for so many more than it needs."""


@dataclass(frozen=True, slots=True)
class RowCost:
    """What one row takes: `fixed_bytes` and, for each token it has room for, `token_bytes`."""

    fixed_bytes: int
    token_bytes: int

    def batch_bytes(self, rows: int, longest_tokens: int) -> int:
        return rows * (self.fixed_bytes + (longest_tokens + STEP_TOKENS) * self.token_bytes)


def weights_bytes(model: Any) -> int:
    """What the model's parameters take."""
    from mlx.utils import tree_flatten

    parameters: Any = tree_flatten(model.parameters())
    return sum(array.nbytes for _, array in parameters)


def left_by_weights(model: Any, memory_bytes: int | None) -> int | None:
    """Of so much memory, what the model's weights leave. Raises `ModelError` where that is nothing."""
    if memory_bytes is None:
        return None
    weights = weights_bytes(model)
    if weights >= memory_bytes:
        raise ModelError(
            f"the model's weights take {weights / 2**30:.2f} GiB of the {memory_bytes / 2**30:.2f} GiB allowed, and "
            "nothing is left to run it with"
        )
    return memory_bytes - weights


def give_back() -> None:
    """Frees what nobody holds any more, and gives it back to the machine."""
    gc.collect()  # a model is a graph of modules that point at each other
    if (mx := sys.modules.get("mlx.core")) is not None:
        mx.clear_cache()
    heap.give_back()


def measure_row_cost(model: Any) -> RowCost:
    """Runs a few tokens through fresh caches of the model, and then as many more as a cache grows by at a time.

    A window that slides counts in full for every row, however short: rows keep the window of a longer one that has
    left. Raises `ModelError` for a model that cannot run.
    """
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    sizes: list[list[int]] = []
    try:
        # Two tokens and not one: of a single token, a window makes room for many.
        for count in (2, STEP_TOKENS + 2):
            cache = make_prompt_cache(model)
            mx.eval(model(mx.zeros((1, count), dtype=mx.int32), cache=cache), [layer.state for layer in cache])
            layers = list(cache_layers(cache))
            sizes.append([layer.nbytes for layer in layers])
    except Exception as error:  # whatever the model raises, it cannot serve
        raise ModelError(f"the model loads and cannot generate: {error}") from error
    fixed_bytes = token_bytes = 0
    for layer, few, more in zip(layers, *sizes, strict=True):
        growth = -(-max(0, more - few) // STEP_TOKENS)
        if isinstance(window := getattr(layer, "max_size", None), int):
            fixed_bytes += window * growth
        else:
            fixed_bytes += max(0, few - growth * STEP_TOKENS)
            token_bytes += growth
    return RowCost(fixed_bytes, token_bytes)


def cache_layers(cache: Iterable[Any]) -> Iterator[Any]:
    """Each layer's cache, and those that a layer keeps several of."""
    for layer in cache:
        if hasattr(layer, "caches"):
            yield from cache_layers(layer.caches)
        else:
            yield layer


@dataclass(frozen=True, slots=True)
class Budget:
    """`limit_bytes`: what all rows may take; none means that the machine's memory is not known."""

    cost: RowCost
    limit_bytes: int | None

    def needed_bytes(self, lengths: Iterable[int]) -> int:
        """What rows of these lengths (tokens, prompt and answer) take when they run together."""
        each = list(lengths)
        return self.cost.batch_bytes(len(each), max(each, default=0))

    def allows(self, lengths: Iterable[int]) -> bool:
        return self.limit_bytes is None or self.needed_bytes(lengths) <= self.limit_bytes
