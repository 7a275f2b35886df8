"""What a request changes of its own logits before a token is drawn: mlx-lm's logits processors, one row's each.

Each is called with all tokens of its row so far, the prompt's first, and with the logits of the next, (1, vocabulary).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from .texts.detokenize import REPLACEMENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import mlx.core as mx

    from .texts.text import GrowingText

    Processor = Callable[[mx.array, mx.array], mx.array]

PENALISED_TOKENS = 1024
"""How far back a repetition penalty looks, the prompt included."""
_MOST_SPACES = 2
"""Tokens of white space between a thought and an answer that is kept to something."""


class OwnProcessor:
    """One request's change to its own logits. What it raises stays in `error`, and the batch goes on without it."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self.error: Exception | None = None

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if self.error is None:
            try:
                return self._processor(tokens, logits)
            except Exception as error:  # noqa: BLE001 - whatever it is, the neighbours' step must go on
                self.error = error
        return logits


def repetition_penalty(penalty: float) -> Processor:
    """mlx-lm's, which divides positive logits of tokens seen before by `penalty` and multiplies negative ones."""
    from mlx_lm.sample_utils import make_repetition_penalty

    processor: Processor = make_repetition_penalty(penalty, PENALISED_TOKENS)
    return processor


def answer_penalties(frequency: float, presence: float, prompt_tokens: int) -> Processor:
    """OpenAI's: from a token's logit, `frequency` for each time and `presence` once where it stands in the answer.

    Source: https://platform.openai.com/docs/guides/text-generation#frequency-and-presence-penalties
    """
    counts: dict[int, int] = {}
    read = prompt_tokens

    def penalise(tokens: mx.array, logits: mx.array) -> mx.array:
        import mlx.core as mx

        nonlocal read
        new: Any = tokens[read:].tolist()
        read += len(new)
        for token in new:
            counts[token] = counts.get(token, 0) + 1
        if not counts:
            return logits
        at = mx.array(list(counts))
        less = mx.array([frequency * count + presence for count in counts.values()], dtype=logits.dtype)
        return logits.at[:, at].subtract(less)

    return penalise


def bias(by_token: Mapping[int, float], vocabulary_size: int) -> Processor:
    """Adds to the logits of these tokens. Raises `RequestError` for one that the model does not have."""
    import mlx.core as mx

    for token in by_token:
        if token >= vocabulary_size:
            raise RequestError(f"logit_bias: there is no token {token:,}, of {vocabulary_size:,}")
    at, more = mx.array(list(by_token)), mx.array(list(by_token.values()))

    def add(tokens: mx.array, logits: mx.array) -> mx.array:
        return logits.at[:, at].add(more.astype(logits.dtype))

    return add


def forbid(forbidden: Iterable[int], until_tokens: float) -> Processor:
    """Draws none of these while fewer tokens are there than `until_tokens`, the prompt's included.

    Where nothing else may come, as when an answer is all that its JSON schema allows, one of them does.
    """
    import mlx.core as mx

    at = mx.array(sorted(forbidden))

    def without(tokens: mx.array, logits: mx.array) -> mx.array:
        if len(tokens) >= until_tokens:
            return logits
        others = mx.array(logits)
        others[:, at] = -math.inf
        return mx.where(others.max(axis=-1, keepdims=True) == -math.inf, logits, others)

    return without


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """What begins and ends a model's thoughts: single tokens, or texts that it spells as it likes."""

    start: str
    ends: tuple[str, ...]
    start_tokens: tuple[int, ...]
    """As the tokenizer spells the start."""
    end_tokens: tuple[int, ...]
    """And the first of the ends."""
    forced_end: tuple[int, ...]
    """What a thought is brought to its end by."""
    last_piece: str
    """The text of the last of `end_tokens`."""
    spaces: tuple[int, ...] = ()
    """Tokens of white space that may stand between a thought and what comes after it."""


class Thinking(OwnProcessor):
    """A model's thoughts, ahead of its answer: ended after `most_tokens`, and free of what the answer is kept to.

    `new_text`: that of an answer, as yet empty; `begun`: whether the prompt has begun a thought.
    `constraint`: what the answer is kept to, once it begins, if anything: a processor, whose place this takes.
    """

    _without_answer = "the model ended in its thoughts, and made no answer of its schema"

    def __init__(
        self,
        marks: ThoughtMarks,
        new_text: Callable[[], GrowingText],
        *,
        begun: bool,
        most_tokens: int | None = None,
        constraint: Any = None,
    ) -> None:
        super().__init__(self._next)
        self._marks = marks
        self._new_text = new_text
        self._to_come: list[int] = []
        """What is left of what ends a thought that is being brought to its end."""
        self._most_tokens = most_tokens
        self.constraint = constraint
        self._thought: list[int] = []
        self._spaces_left = 0
        self._begin(begun=begun)

    def _begin(self, *, begun: bool) -> None:
        self._text = self._new_text()
        self._thinking = begun
        self._may_begin = not begun and bool(self._marks.start)
        self._start = list(self._marks.start_tokens)
        """What is left of it, where all that was drawn is its beginning."""
        self._is_start = False
        """Whether it can be nothing else, as the answer may not begin so."""
        self._from, self._settled = 0, 0
        """Where in the text the thought begins, and so much of it has been looked at."""
        self._first = True

    def fault(self, text: str) -> str | None:
        if self.constraint is None:
            return None
        fault: str | None = self._without_answer if self._thinking else self.constraint.fault(text)
        return fault

    def _next(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if not self._first and (self._may_begin or self._thinking):
            drawn: Any = tokens[-1].item()
            self._text.add(drawn)
            if self._may_begin:
                self._look_for_start(drawn)
            else:
                self._thought.append(drawn)
                self._look_for_end()
        self._first = False
        if self._thinking:
            return self._bounded(logits)
        if self.constraint is None:
            return logits
        if self._may_begin:
            return self._beginning(tokens, logits)
        return self._after_thought(tokens, logits) if self._spaces_left else self._constrained(tokens, logits)

    def _look_for_start(self, drawn: int) -> None:
        is_start = self._start[:1] == [drawn]
        del self._start[:1]
        text = self._text.text
        so_far, mark = text.lstrip().rstrip(REPLACEMENT), self._marks.start
        if so_far.startswith(mark):
            self._thinking, self._may_begin = True, False
            self._from = self._settled = text.index(mark) + len(mark)
            if self.constraint is not None:
                self.constraint.begin_anew()
        elif not (is_start and self._start if self.constraint is not None else mark.startswith(so_far)):
            self._may_begin = False

    def _look_for_end(self) -> None:
        text = self._text.text
        for mark in self._marks.ends:
            if (at := text.find(mark, max(self._from, self._settled - len(mark)))) >= 0:
                self._thinking = False
                self._spaces_left = _MOST_SPACES + 1 if self._marks.spaces else 0
                if self.constraint is not None and (rest := text[at + len(mark) :].strip()):
                    raise RequestError(f"the model ends its thought and begins its answer with one token ({rest!r})")
        self._settled = self._text.settled

    def _beginning(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Either the answer begins, or a thought."""
        import mlx.core as mx

        if self._is_start:
            return _only(self._start[0], logits)
        own = logits[:, self._start[0]]
        constrained = self._constrained(tokens, mx.array(logits))
        self._is_start = constrained[0, self._start[0]].item() == -math.inf
        constrained[:, self._start[0]] = own
        return constrained

    def _after_thought(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """The answer begins, or white space comes first, which is no part of it."""
        import mlx.core as mx

        if self._spaces_left <= _MOST_SPACES:  # else what was drawn last ended the thought
            drawn: Any = tokens[-1].item()
            if drawn not in self._marks.spaces:
                self._spaces_left = 0
                return self._constrained(tokens, logits)
            self.constraint.begin_anew()
        self._spaces_left -= 1
        constrained = self._constrained(tokens, mx.array(logits))
        if self._spaces_left:
            spaces = mx.array(self._marks.spaces)
            constrained[:, spaces] = logits[:, spaces]
        return constrained

    def _constrained(self, tokens: mx.array, logits: mx.array) -> mx.array:
        made: mx.array = self.constraint(tokens, logits)
        if self.constraint.error is not None:
            raise self.constraint.error
        return made

    def _bounded(self, logits: mx.array) -> mx.array:
        """While it thinks: after enough of it, token by token what ends it, or what is left of that where it has come
        to the beginning by itself."""
        if self._to_come:
            return _only(self._to_come.pop(0), logits)
        if self.constraint is not None and self._ends_with_next:  # by nothing in which the answer begins as well
            return _only(self._marks.end_tokens[-1], logits)
        if self._most_tokens is None or len(self._thought) < self._most_tokens:
            return logits
        marks = (self._marks.end_tokens, self._marks.forced_end)
        begun, mark = max((self._begun(mark), mark) for mark in marks)
        self._to_come = list(mark[begun:] if begun else self._marks.forced_end)
        return _only(self._to_come.pop(0), logits)

    @property
    def _ends_with_next(self) -> bool:
        mark, last = self._marks.ends[0], self._marks.last_piece
        return mark.endswith(last) and mark != last and self._text.text.endswith(mark.removesuffix(last))

    def _begun(self, mark: tuple[int, ...]) -> int:
        """How many tokens of it, and not all, the thought ends with."""
        shorter = range(len(mark) - 1, 0, -1)
        return next((size for size in shorter if tuple(self._thought[-size:]) == mark[:size]), 0)


class OrCalls(Thinking):
    """What an answer is kept to, unless it begins with a call of a tool. That a mark begins, as a thought, and has no
    end: what comes of it is the model's, and whether it is calls is seen when it is there."""

    _without_answer = "the answer is neither JSON of its schema nor a call of a tool"

    def begin_anew(self) -> None:
        """What was drawn is no part of the answer: that begins with the next."""
        self.constraint.begin_anew()
        self._begin(begun=False)

    def _bounded(self, logits: mx.array) -> mx.array:
        return logits


def _only(token: int, logits: mx.array) -> mx.array:
    import mlx.core as mx

    forced = mx.full(logits.shape, -math.inf, dtype=logits.dtype)
    forced[:, token] = 0.0
    return forced
