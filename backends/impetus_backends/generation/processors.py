"""What a request changes of its own logits before a token is drawn: mlx-lm's logits processors, one row's each.

Each is called with all tokens of its row so far, the prompt's first, and with the logits of the next, (1, vocabulary).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import mlx.core as mx

    Processor = Callable[[mx.array, mx.array], mx.array]

PENALISED_TOKENS = 1024
"""How far back a repetition penalty looks, the prompt included."""


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


class Thinking(OwnProcessor):
    """A model's thoughts, ahead of its answer: ended after `most_tokens`, and free of what the answer is kept to.

    `start`: the tokens that begin a thought; `end`: those that end one, and `forced_end` those by which that is brought
    about; `begun`: whether the prompt has begun one.
    `constraint`: what the answer is kept to, once it begins, if anything: a processor, whose place this takes.
    """

    def __init__(
        self,
        start: Sequence[int],
        end: Sequence[int],
        forced_end: Sequence[int],
        *,
        begun: bool,
        most_tokens: int | None = None,
        constraint: Any = None,
    ) -> None:
        super().__init__(self._next)
        self._start, self._end, self._forced_end = tuple(start), tuple(end), tuple(forced_end)
        self._to_come: list[int] = []
        """What is left of what ends a thought that is being brought to its end."""
        self._most_tokens = most_tokens
        self.constraint = constraint
        self._thinking = begun
        self._may_begin = not begun and bool(self._start)
        self._opened = 0
        """How many of the tokens that begin a thought have come."""
        self._thought: list[int] | None = [] if begun else None
        self._first = True

    def fault(self, text: str) -> str | None:
        fault: str | None = self.constraint.fault(text) if self.constraint is not None else None
        return fault

    def _next(self, tokens: mx.array, logits: mx.array) -> mx.array:
        import mlx.core as mx

        drawn: Any = None if self._first else tokens[-1].item()
        first, self._first = self._first, False
        if self._may_begin and not first:
            if drawn == self._start[self._opened]:
                self._opened += 1
                if self._opened < len(self._start):
                    return _only(self._start[self._opened], logits)
                self._thinking, self._thought = True, []
                drawn = None
                if self.constraint is not None:
                    self.constraint.begin_anew()
            self._may_begin = False
        if self._thinking:
            assert self._thought is not None
            if drawn is not None:
                self._thought.append(drawn)
            if tuple(self._thought[-len(self._end) :]) != self._end:
                return self._bounded(logits)
            self._thinking = False
        if self.constraint is None:
            return logits
        if not self._may_begin:
            return self._constrained(tokens, logits)
        own = logits[:, self._start[0]]
        constrained = self._constrained(tokens, mx.array(logits))
        constrained[:, self._start[0]] = own
        return constrained

    def _constrained(self, tokens: mx.array, logits: mx.array) -> mx.array:
        made: mx.array = self.constraint(tokens, logits)
        if self.constraint.error is not None:
            raise self.constraint.error
        return made

    def _bounded(self, logits: mx.array) -> mx.array:
        """While it thinks: after enough of it, token by token what ends it, or what is left of that where it has come
        to the beginning by itself."""
        assert self._thought is not None
        if self._most_tokens is None or len(self._thought) < self._most_tokens:
            return logits
        if not self._to_come:
            begun, mark = max((self._begun(mark), mark) for mark in (self._end, self._forced_end))
            self._to_come = list(mark[begun:] if begun else self._forced_end)
        return _only(self._to_come.pop(0), logits)

    def _begun(self, mark: tuple[int, ...]) -> int:
        """How many tokens of it, and not all, the thought ends with."""
        assert self._thought is not None
        shorter = range(len(mark) - 1, 0, -1)
        return next((size for size in shorter if tuple(self._thought[-size:]) == mark[:size]), 0)


def _only(token: int, logits: mx.array) -> mx.array:
    import mlx.core as mx

    forced = mx.full(logits.shape, -math.inf, dtype=logits.dtype)
    forced[:, token] = 0.0
    return forced
