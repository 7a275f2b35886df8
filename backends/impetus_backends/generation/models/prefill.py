"""How long a loader profile takes to read a prompt, on a model of random weights: its time does not depend on them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..quantization.quantize import RECIPES, evaluate, quantize
from .libraries import import_libraries

if TYPE_CHECKING:
    from collections.abc import Callable

    from .profiles import Profile

PROMPT_TOKENS = 2048
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama-style model; the default has a billion weights, 2.1 GB in bfloat16."""

    hidden: int = 2048
    layers: int = 16
    heads: int = 32
    key_value_heads: int = 8
    mlp: int = 8192
    vocabulary: int = 32_768

    @property
    def weights(self) -> int:
        """How many its layers multiply by."""
        attention = 2 * (self.heads + self.key_value_heads) * (self.hidden // self.heads) * self.hidden
        return self.layers * (attention + 3 * self.hidden * self.mlp)


def prefill_seconds(
    profile: Profile,
    *,
    clock: Callable[[], float],
    prompt_tokens: int = PROMPT_TOKENS,
    shape: Shape | None = None,
) -> float:
    """The median time to read one prompt as the profile does it: weights in its form, in steps of its length.

    Raises `BackendUnavailableError` without MLX. One round goes before those that count: kernels are compiled in it.
    """
    mx, _ = import_libraries()
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.models.llama import Model, ModelArgs

    shape = shape or Shape()
    mx.random.seed(0)
    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            intermediate_size=shape.mlp,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads,
            rms_norm_eps=1e-5,
            vocab_size=shape.vocabulary,
        )
    )
    model.set_dtype(mx.bfloat16)
    quantize(model, {}, RECIPES[profile.quantization])
    evaluate(model)
    prompt = mx.random.randint(0, shape.vocabulary, (1, prompt_tokens))
    mx.eval(prompt)

    def read() -> float:
        cache = make_prompt_cache(model)
        started = clock()
        for start in range(0, prompt_tokens, profile.prefill_tokens):
            model(prompt[:, start : start + profile.prefill_tokens], cache=cache)
            mx.eval([layer.state for layer in cache])
        return clock() - started

    return statistics.median([read() for _ in range(1 + _ROUNDS)][1:])
