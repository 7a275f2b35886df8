"""What the engine knows of a request that it has taken in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ..protocol import GenerationWork
    from .running import Row
    from .schemas.structured import JsonConstraint
    from .texts.text import TextBuilder


@dataclass(slots=True, eq=False)
class Request:
    """One request on its way. What a run fills in is made anew when the request has to run again."""

    work: GenerationWork
    prompt: np.ndarray
    admitted_at: float
    row: Row | None = None
    constraint: Any = None
    """What keeps its answer to a JSON schema."""
    text: TextBuilder = field(init=False, repr=False)
    completion_tokens: int = 0
    first_token_at: float = 0.0
    logprobs: list[tuple[str, float]] = field(default_factory=list)

    @property
    def longest_tokens(self) -> int:
        """The most tokens it may come to, prompt and answer."""
        return len(self.prompt) + self.work.max_tokens

    def failure(self) -> Exception | None:
        """What its own processors met."""
        processors = self.row.processors if self.row is not None else ()
        return next((each.error for each in processors if each.error is not None), None)

    def schema_fault(self, text: str) -> str | None:
        """Why its whole answer is not of its JSON schema, though it was kept to it token by token."""
        if self.work.schema is None or self.row is None:
            return None
        constraint: JsonConstraint = self.row.processors[-1]
        return constraint.fault(text)
