"""What the engine knows of a request that it has taken in: its prompt, how its tokens are drawn, what it has said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..protocol import Answer, Likely, Progress
from .sampling import Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from ..protocol import GenerationWork
    from .running import Row
    from .texts.channels import Splitter
    from .texts.text import TextBuilder
    from .texts.tool_calls import ToolCalls

_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""What holds where neither a request nor the model's own files say anything."""


def sampling_of(work: GenerationWork, defaults: Mapping[str, float]) -> dict[str, float]:
    """How a request's tokens are drawn: as it says, or as the model's files do, or as `_SAMPLING` does."""
    return {
        name: value if (value := getattr(work, name)) is not None else defaults.get(name, nobody_said)
        for name, nobody_said in _SAMPLING.items()
    }


@dataclass(slots=True, eq=False)
class Request:
    """One request on its way. What a run fills in is made anew when the request has to run again."""

    work: GenerationWork
    prompt: np.ndarray
    admitted_at: float
    max_tokens: int
    """The most of one answer."""
    drawn: Mapping[str, float]
    """`sampling_of` it."""
    schema: str | None = None
    """What its answer keeps to: what was asked for, or a call that has to be made."""
    thinking: bool = False
    """Whether its prompt has begun a thought."""
    tool_calls: ToolCalls | None = None
    """Where its answer may hold calls."""
    constraint: Any = None
    """What keeps its answer to the schema, ready for the first run."""
    row: Row | None = None
    text: TextBuilder = field(init=False, repr=False)
    splitter: Splitter | None = None
    """Of this run's text as far as it has been told."""
    answers: list[Answer] = field(default_factory=list)
    """Those that are whole."""
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    first_token_at: float | None = None
    cached_tokens: int = 0
    logprobs: list[Likely] = field(default_factory=list)

    @property
    def longest_tokens(self) -> int:
        """The most tokens it may come to at a time, prompt and answer."""
        return len(self.prompt) + self.max_tokens

    @property
    def sampling(self) -> Sampling:
        seed = self.work.seed
        return Sampling(
            self.drawn["temperature"],
            self.drawn["top_p"],
            int(self.drawn["top_k"]),
            self.drawn["min_p"],
            None if seed is None else seed + len(self.answers),
        )

    def begin_anew(self) -> None:
        """Nothing that it has said counts any more."""
        self.answers.clear()
        self.completion_tokens = self.reasoning_tokens = 0
        self.first_token_at = None

    def failure(self) -> Exception | None:
        """What its own processors met."""
        processors = self.row.processors if self.row is not None else ()
        return next((each.error for each in processors if each.error is not None), None)

    def schema_fault(self, text: str) -> str | None:
        """Why its whole answer is not of its JSON schema, though it was kept to it token by token."""
        if self.schema is None or self.row is None:
            return None
        fault: str | None = self.row.processors[-1].fault(text)
        return fault

    def progress(self) -> Progress | None:
        """What is new of what it says."""
        piece = self.text.take()
        if self.splitter is None:
            return Progress(self.work.id, piece, choice=len(self.answers)) if piece else None
        said = self.splitter.feed(piece)
        if self.has_to_call or not (said.text or said.reasoning):
            return None
        return Progress(self.work.id, said.text, said.reasoning, len(self.answers))

    @property
    def has_to_call(self) -> bool:
        return self.work.tool_choice not in ("auto", "none")

    def answer(self, text: str, reason: str) -> Answer:
        """What an ended run has come to. Raises `RequestError` where its calls are not what a strict tool takes."""
        logprobs = tuple(self.logprobs) if self.work.logprobs else None
        reasoning = ""
        calls = None
        if self.splitter is not None:
            said = self.splitter.whole(text, complete=reason == "stop")
            calls = self.tool_calls.of(said.calls) if self.tool_calls is not None else ()
            if calls is not None:
                text, reasoning = said.text, said.reasoning
        if self.has_to_call and self.tool_calls is not None and reason == "stop":
            text, calls = "", self.tool_calls.of_json(text)
        if calls and not self.work.parallel_tool_calls:
            calls = calls[:1]
        return Answer(text, "tool_calls" if calls and reason == "stop" else reason, reasoning or None, calls or (),
                      logprobs)  # fmt: skip
