"""Choosing the next token: greedy, at random, or at random from a request's own seed.

A sampler takes log-probabilities, (rows, vocabulary), and returns token ids, (rows,). mlx-lm calls it once for the
whole batch when all rows share one object, else once a row; so requests with equal parameters get the same object.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    import mlx.core as mx

Sampler: TypeAlias = "Callable[[mx.array], mx.array]"

GREEDY_BELOW = 1e-5
"""Temperatures under this count as 0: the likeliest token wins anyway, and dividing by them overflows."""

_CACHED_SAMPLERS = 256


class OwnSampler:
    """One request's sampler, shared with no other. What it raises stays in `error`, and the batch goes on.

    After an error the row takes the likeliest token, which nobody will read: the engine looks at `error` after every
    step and ends that request.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.error: Exception | None = None

    def __call__(self, logprobs: mx.array) -> mx.array:
        if self.error is None:
            try:
                tokens = self._sampler(logprobs)
                if tokens.shape != (logprobs.shape[0],):
                    raise ValueError(f"the sampler returned {tokens.shape} tokens for {logprobs.shape[0]} rows")
                return tokens
            except Exception as error:  # noqa: BLE001  # whatever it is, the neighbours' step must go on
                self.error = error
        return logprobs.argmax(axis=-1)


class Samplers:
    """Makes samplers, and hands out the same one for the same parameters as long as it is remembered."""

    def __init__(self) -> None:
        self._shared: Callable[[float, float], Sampler] = lru_cache(maxsize=_CACHED_SAMPLERS)(self.make_shared)

    def get(self, temperature: float, top_p: float, seed: int | None) -> Sampler:
        """The sampler for a request. With a seed it is a fresh `OwnSampler`, so that no stranger's draw moves it.

        Below a temperature of `GREEDY_BELOW` the seed has no say and the sampler is the shared greedy one.
        """
        if temperature < GREEDY_BELOW:
            return self._shared(0.0, 1.0)
        if seed is None:
            return self._shared(temperature, top_p)
        return OwnSampler(self.make_seeded(temperature, top_p, seed))

    def make_shared(self, temperature: float, top_p: float) -> Sampler:
        """A sampler that draws from MLX's global random state, or takes the likeliest token at temperature 0."""
        if temperature == 0:
            from mlx_lm.sample_utils import greedy_sampler

            greedy: Sampler = greedy_sampler
            return greedy
        draw = _drawing(temperature, top_p)
        return lambda logprobs: draw(logprobs, None)

    def make_seeded(self, temperature: float, top_p: float, seed: int) -> Sampler:
        """A sampler that draws from `seed` alone: its n-th draw is the same wherever and with whomever it runs."""
        import mlx.core as mx

        draw = _drawing(temperature, top_p)
        key: Any = mx.random.key(seed)

        def sample(logprobs: mx.array) -> mx.array:
            nonlocal key
            key, drawn = mx.random.split(key)
            return draw(logprobs, drawn)

        return sample


def _drawing(temperature: float, top_p: float) -> Callable[[mx.array, mx.array | None], mx.array]:
    """Draws one token a row with a key, or with none from the global state. As in mlx-lm, `top_p` cuts first.

    mlx-lm's own `make_sampler` compiles the temperature and `top_p` into a kernel, which costs a second for every new
    pair of values a stranger sends; here neither is a constant of any compiled function.
    """
    import mlx.core as mx
    from mlx_lm.sample_utils import apply_top_p

    mass: Any = mx.array(top_p)

    def draw(logprobs: mx.array, key: mx.array | None) -> mx.array:
        logprobs = logprobs.astype(mx.float32)
        if top_p < 1:
            logprobs = apply_top_p(logprobs, mass)
        return mx.random.categorical(logprobs * (1 / temperature), key=key)

    return draw
