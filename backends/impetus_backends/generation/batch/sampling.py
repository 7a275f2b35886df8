"""Choosing the next token of every row of a batch in one call, whatever each row asks for.

mlx-lm samples row by row as soon as two rows differ in their sampler. So all rows share one here, which is told before
each step whose rows they are, and does for all at once what their parameters say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import mlx.core as mx

NO_TOKEN = -1
"""Stands for one that cannot be drawn, because the model has computed NaN, or infinity."""
GREEDY_BELOW = 1e-5
"""Temperatures under this count as 0: the likeliest token wins anyway, and dividing by them overflows."""
_SEEDS = 2**64
"""MLX knows so many. Any other integer is as good a seed as what is left of it."""
_MOST_TOP_K = 2**31 - 1
"""More than any vocabulary has, and what MLX can count to. More must not fail the step of everybody."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a request says of how its tokens are to be chosen."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def cuts(self) -> bool:
        """Whether some tokens are never drawn."""
        return not self.greedy and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)


class Draws:
    """One row's source of chance: its seed's, whose n-th draw is the same wherever and beside whomever it runs."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._key: Any = None

    def noise(self, width: int) -> mx.array:
        """The next (1, width) draw of a row that has a seed."""
        import mlx.core as mx

        if self._key is None:
            self._key = mx.random.key((self.sampling.seed or 0) % _SEEDS)
        self._key, drawn = mx.random.split(self._key)
        return mx.random.gumbel((1, width), key=drawn)


class BatchSampler:
    """Takes log-probabilities, (rows, vocabulary), and returns token ids, int32 (rows,): a sampler as mlx-lm calls it.
    `NO_TOKEN` is where they were not numbers.

    Drawing is by the Gumbel-max trick: the largest of logprob / temperature + noise is a sample of the distribution
    (https://arxiv.org/abs/1611.01144). A greedy row's noise is 0. The cuts of `top_p`, `top_k` and `min_p` are each
    made on the model's own distribution, before the temperature, and what one of them drops is dropped.
    """

    def __init__(self) -> None:
        self._rows: list[Draws] = []
        self._parameters: _Parameters | None = None

    def use(self, rows: Sequence[Draws]) -> None:
        """Whose rows the next calls are about, in their order."""
        if self._rows != list(rows):
            self._rows, self._parameters = list(rows), None

    def __call__(self, logprobs: mx.array) -> mx.array:
        import mlx.core as mx

        if len(self._rows) != logprobs.shape[0]:
            raise ValueError(f"the sampler was told of {len(self._rows)} rows, and is given {logprobs.shape[0]}")
        if all(row.sampling.greedy for row in self._rows):
            return likeliest(logprobs)
        if self._parameters is None:
            self._parameters = _Parameters([row.sampling for row in self._rows])
        logits = logprobs.astype(mx.float32)
        if self._parameters.cut:
            logits = mx.where(logits < self._parameters.thresholds(logits), -math.inf, logits)
        noise = mx.where(self._parameters.greedy, 0.0, self._noise(logits.shape))
        return _numbers_alone(mx.argmax(logits * self._parameters.inverse_temperatures + noise, axis=-1), logprobs)

    def _noise(self, shape: tuple[int, ...]) -> mx.array:
        import mlx.core as mx

        if all(row.sampling.seed is None for row in self._rows):
            return mx.random.gumbel(shape)
        unseeded = mx.random.gumbel(shape) if any(row.sampling.seed is None for row in self._rows) else None
        drawn: list[mx.array] = []
        for at, row in enumerate(self._rows):
            if row.sampling.seed is not None and not row.sampling.greedy:
                drawn.append(row.noise(shape[1]))
            else:
                drawn.append(mx.zeros((1, shape[1])) if unseeded is None else unseeded[at : at + 1])
        return mx.concatenate(drawn)


def likeliest(logprobs: mx.array) -> mx.array:
    """The likeliest token of each row, as `BatchSampler` returns them."""
    import mlx.core as mx

    return _numbers_alone(mx.argmax(logprobs, axis=-1), logprobs)


def _numbers_alone(drawn: mx.array, logprobs: mx.array) -> mx.array:
    """What was drawn by log-probabilities that are numbers.

    Their logits' logsumexp has been taken from all of them. So one NaN has made all NaN, as has a row in which
    everything is forbidden; and plus infinity has become NaN, and all beside it minus infinity.
    """
    import mlx.core as mx

    by = mx.take_along_axis(logprobs, drawn[:, None], axis=-1)[:, 0]
    return mx.where(mx.isfinite(by), drawn.astype(mx.int32), NO_TOKEN)


class _Parameters:
    """The rows' parameters as columns, (rows, 1)."""

    def __init__(self, rows: list[Sampling]) -> None:
        import mlx.core as mx

        def column(of: Callable[[Sampling], Any]) -> mx.array:
            return mx.array([of(row) for row in rows])[:, None]

        self.cut = any(row.cuts for row in rows)
        self.greedy = column(lambda row: row.greedy)
        self.inverse_temperatures = column(lambda row: 1.0 if row.greedy else 1.0 / row.temperature)
        # Rows that do not cut by something get the value that cuts nothing.
        self._top_p = column(lambda row: row.top_p if row.top_p < 1 else 2.0)
        self._top_k = column(lambda row: min(max(row.top_k, 0), _MOST_TOP_K))
        self._log_min_p = column(lambda row: math.log(row.min_p) if row.min_p > 0 else -math.inf)

    def thresholds(self, logits: mx.array) -> mx.array:
        """(rows, 1): a token less likely than this is dropped."""
        import mlx.core as mx

        width = logits.shape[-1]
        ordered = -mx.sort(-logits, axis=-1)
        probabilities = mx.exp(ordered)
        # Of the likeliest tokens as many are kept as it takes for those before each to make up less than top_p.
        mass_before = mx.cumsum(probabilities, axis=-1) - probabilities
        kept = mx.maximum((mass_before < self._top_p).sum(axis=-1, keepdims=True), 1)
        kept = mx.where((self._top_k > 0) & (self._top_k < kept), self._top_k, kept)
        by_rank = mx.take_along_axis(ordered, mx.minimum(kept, width) - 1, axis=-1)
        return mx.maximum(by_rank, ordered[:, :1] + self._log_min_p)
