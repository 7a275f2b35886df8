"""What a batch costs the device, learned as it runs: t = a + b * padded tokens.

Source: BentoML's `_internal/marshal/dispatcher.py`, which decides by such a model whether waiting for more pays.
"""

from __future__ import annotations

_MEMORY = 0.95
"""How much each observation leaves of the weight of those before it."""
_PAYS_FROM = 0.5


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
    def fixed_s(self) -> float | None:
        """`a`: what a batch costs however small it is. None before anything ran."""
        if not self._weight:
            return None
        spread = self._weight * self._xx - self._x**2
        # Batches all of one size tell nothing of b: then all of the time may be fixed, and waiting may pay.
        if spread <= 1e-9 * self._weight * self._xx:
            return self._y / self._weight
        b = max(0.0, (self._weight * self._xy - self._x * self._y) / spread)
        return max(0.0, (self._y - b * self._x) / self._weight)

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
