"""What a batch costs the device, learned as it runs: t = a + b * padded tokens.

Source: BentoML's `_internal/marshal/dispatcher.py`, which decides by such a model whether waiting for more pays.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from impetus_producer.contract import MeasuredCost

if TYPE_CHECKING:
    from collections.abc import Sequence

_MEMORY = 0.95
"""How much each observation leaves of the weight of those before it."""
_PAYS_FROM = 0.5
_UNKNOWN_BATCH_S = 0.5
_LEARNING_RATE = 0.2
"""Of the moving average of a batch's seconds."""


class CostModel:
    """Exponentially weighted least squares over (padded tokens, seconds), and the rate at which texts arrive."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self._arrivals = 0.0
        self._since = 0.0

    def observe(self, padded_tokens: int, seconds: float) -> None:
        """One batch ran."""
        self._weight = _MEMORY * self._weight + 1
        self._x = _MEMORY * self._x + padded_tokens
        self._y = _MEMORY * self._y + seconds
        self._xx = _MEMORY * self._xx + padded_tokens**2
        self._xy = _MEMORY * self._xy + padded_tokens * seconds

    @property
    def line(self) -> tuple[float, float] | None:
        """`a` and `b` as far as they are known; batches all of one size tell of `b` alone. None before anything ran."""
        if not self._weight:
            return None
        return self._line() or (0.0, self._y / self._x)

    def _line(self) -> tuple[float, float] | None:
        """None where batches were all of one size."""
        spread = self._weight * self._xx - self._x**2
        if spread <= 1e-9 * self._weight * self._xx:
            return None
        b = max(0.0, (self._weight * self._xy - self._x * self._y) / spread)
        return max(0.0, (self._y - b * self._x) / self._weight), b

    @property
    def fixed_s(self) -> float | None:
        """`a`: what a batch costs however small it is. None before anything ran."""
        if not self._weight:
            return None
        line = self._line()
        # Batches all of one size tell nothing of b: then all of the time may be fixed, and waiting may pay.
        return line[0] if line is not None else self._y / self._weight

    def expected_s(self, padded_tokens: int) -> float | None:
        """About the most that a batch should cost: as batches of late did on average, and a larger one in proportion.

        None before anything ran.
        """
        if not self._weight:
            return None
        mean_s, mean_tokens = self._y / self._weight, self._x / self._weight
        return mean_s * max(1.0, padded_tokens / max(mean_tokens, 1.0))

    def arrived(self, texts: int, now: float) -> None:
        """Texts came in, at `now` seconds; counted over about the last second."""
        self._arrivals = self._arrivals * max(0.0, 1 - (now - self._since)) + texts
        self._since = now

    def waiting_pays(self, now: float) -> bool:
        """Whether an idle device should wait for a batch to fill.

        Run one by one as they come, the texts that arrive in a second would cost the device `rate * a` seconds of
        fixed cost. While that is little, waiting only delays them.
        """
        fixed_s = self.fixed_s
        if fixed_s is None:
            return True
        rate = self._arrivals * max(0.0, 1 - (now - self._since))
        return rate * fixed_s >= _PAYS_FROM


class Costs:
    """Those of an engine's models. `seconds_a_batch`: the moving average over all of them.

    `batch_tokens`: how many padded tokens make a batch. `model` and `points`: padded tokens of batches of it and the
    seconds that they took, as measured when it loaded.
    """

    def __init__(self, batch_tokens: int, model: str = "", points: Sequence[tuple[int, float]] = ()) -> None:
        self.of: defaultdict[str, CostModel] = defaultdict(CostModel)
        """By model."""
        self.seconds_a_batch = points[-1][1] if points else _UNKNOWN_BATCH_S
        self.measured: MeasuredCost | None = None
        """Of the model that ran last."""
        self._batch_tokens = batch_tokens
        for tokens, seconds in points:
            self.observe(model, tokens, seconds)

    def observe(self, model: str, padded_tokens: int, seconds: float) -> None:
        """One batch ran."""
        cost = self.of[model]
        cost.observe(padded_tokens, seconds)
        self.seconds_a_batch += _LEARNING_RATE * (seconds - self.seconds_a_batch)
        if (line := cost.line) is not None:
            self.measured = MeasuredCost(call_s=line[0], token_s=line[1], batch_tokens=self._batch_tokens)
