"""A row of the running batch, and what a step makes for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from .sampling import Draws


@dataclass(slots=True, eq=False)
class Row:
    """One prompt to read and then to go on from."""

    id: int
    prompt: np.ndarray
    """int64 (tokens,)."""
    max_tokens: int
    draws: Draws
    processors: tuple[Any, ...] = ()
    """mlx-lm's logits processors."""
    stop_tokens: tuple[int, ...] = ()
    """Those that end it besides the model's own."""
    alone: bool = False
    """Whether its prompt is read with no other."""
    streamed: bool = False
    """Whether its text is read while it is made, so that its first token is waited for."""
    cached_tokens: int = 0
    """How many tokens of its prompt it was spared, once it is read."""

    @property
    def longest_tokens(self) -> int:
        """The most that it may come to, prompt and answer."""
        return len(self.prompt) + self.max_tokens


@dataclass(frozen=True, slots=True)
class Token:
    """What a step made for one row."""

    id: int
    token: int
    """`NO_TOKEN` where none could be drawn."""
    logprobs: Any
    """The distribution it was drawn from, (vocabulary,)."""
    finish_reason: str | None
    """`stop` (this is an end-of-text token), `length`, or None: the row goes on."""
