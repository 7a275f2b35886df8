"""What a step of the running batch makes for a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Token:
    """What a step made for one row."""

    id: int
    token: int
    logprobs: Any
    """The distribution it was drawn from, (vocabulary,)."""
    finish_reason: str | None
    """`stop` (this is an end-of-text token), `length`, or None: the row goes on."""
    broken: bool = False
    """Whether that distribution is not one of numbers: the model has computed NaN, or infinity."""
