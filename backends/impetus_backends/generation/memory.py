"""How much memory the requests that run together need for their keys and values, and whether one more has room.

Rows of a batch are padded to the longest of them, so what a batch needs is its rows times its longest, prompt and
answer together: an answer is counted in full from the start, for memory that runs out in the middle helps nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

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


def measure_row_cost(model: Any) -> RowCost:
    """Runs one token through fresh caches of the model, and one more than fit into their first step.

    A window that slides, and so stops growing, is taken to grow on: this may be too much and is never too little.
    """
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    sizes = []
    for count in (1, STEP_TOKENS + 1):
        cache = make_prompt_cache(model)
        mx.eval(model(mx.zeros((1, count), dtype=mx.int32), cache=cache), [layer.state for layer in cache])
        sizes.append(sum(layer.nbytes for layer in cache))
    token_bytes = max(0, sizes[1] - sizes[0]) // STEP_TOKENS
    return RowCost(max(0, sizes[0] - token_bytes * STEP_TOKENS), token_bytes)


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
