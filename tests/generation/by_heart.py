"""A model that knows one answer by heart."""

from __future__ import annotations

from typing import Any


class SaysByHeart:
    """A model that says one text, whatever it reads: its logits are the real model's, and far behind that token."""

    def __init__(self, model: Any, tokens: list[int], width: int) -> None:
        self._model, self._tokens, self._width = model, tokens, width
        self._said = 0

    def __call__(self, tokens: Any, **options: Any) -> Any:
        import mlx.core as mx

        known = mx.minimum(tokens, 400)
        logits = self._model(known, **options)
        logits = mx.concatenate([logits, mx.full((*logits.shape[:2], self._width - logits.shape[2]), -5.0)], axis=2)
        if tokens.shape[1] == 1:
            wanted = self._tokens[min(self._said, len(self._tokens) - 1)]
            self._said += 1
            logits = mx.where(mx.arange(self._width) == wanted, 1000.0, logits)
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
