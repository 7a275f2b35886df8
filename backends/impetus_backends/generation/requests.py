"""What the engine knows of a request that it has taken in: its prompt, how its tokens are drawn, what it has said."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import RequestError
from ..protocol import Answer, Generated, Likely, Progress
from .batch.row import Row, Token
from .batch.sampling import Draws, Sampling
from .processors import OwnProcessor, answer_penalties, bias, forbid, repetition_penalty
from .texts.channels import Channels, Said
from .texts.detokenize import REPLACEMENT, Decoding, Detokenizer
from .texts.long_prompts import LongPrompts
from .texts.prompts import Prompts
from .texts.text import TextBuilder
from .texts.tool_calls import ToolCalls, forced_schema, schema_with_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ..protocol import EngineInfo, GenerationWork
    from .models.loader import LoadedModel
    from .schemas.grammars import Grammars
    from .texts.channels import Splitter

_MOST_FAULTS = 8
_SEEDS_APART = 2**40
_END_OF_PROMPT = 16
"""So many tokens of a prompt, beside those of the mark, are looked at for whether they begin a thought."""

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
    keeper: Any = None
    """What keeps this run's answer to it."""
    row: Row | None = None
    text: TextBuilder = field(init=False, repr=False)
    splitter: Splitter | None = None
    """Of this run's text as far as it has been told."""
    faults: int = 0
    """How many of its answers were not what was asked for, though each of their tokens was allowed."""
    answers: list[Answer] = field(default_factory=list)
    """Those that are whole."""
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    whole_tokens: tuple[int, int] = (0, 0)
    """The same two of the whole answers alone."""
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
            None if seed is None else seed + len(self.answers) + self.faults * _SEEDS_APART,
        )

    def try_again(self) -> bool:
        """After an answer that is not what was asked for: whether another may be drawn. A greedy one were the same."""
        if self.faults == _MOST_FAULTS or self.sampling.greedy:
            return False
        self.faults += 1
        self.row = None
        if self.work.stream:
            self.begin_anew()
        self.completion_tokens, self.reasoning_tokens = self.whole_tokens
        return True

    def keep(self, answer: Answer) -> None:
        """It is whole."""
        self.answers.append(answer)
        self.whole_tokens = self.completion_tokens, self.reasoning_tokens

    def begin_anew(self) -> None:
        """Nothing that it has said counts any more."""
        self.answers.clear()
        self.completion_tokens, self.reasoning_tokens = self.whole_tokens = 0, 0
        self.first_token_at = None

    def failure(self) -> Exception | None:
        """What its own processors met."""
        processors = self.row.processors if self.row is not None else ()
        return next((each.error for each in processors if each.error is not None), None)

    def schema_fault(self, answer: Answer) -> str | None:
        """Why its whole answer is not of its JSON schema, though it was kept to it token by token."""
        if self.keeper is None or answer.calls:
            return None
        fault: str | None = self.keeper.fault(answer.text)
        return fault

    def progress(self) -> Progress | None:
        """What is new of what it says. A call is none of that: it is told at the end."""
        piece = self.text.take()
        said = self.splitter.feed(piece) if self.splitter is not None else Said(piece)
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
            if self.text.stopped and len(self.splitter.whole(text, complete=False).calls) < len(said.calls):
                calls = None  # a stop string has cut one short, however much a parser makes of that
            if calls is None:
                said = self.splitter.whole(text, complete=True, calls=False)
                # Within what seemed a call they ended nothing.
                ends = [at for stop in self.work.stop if (at := said.text.find(stop)) >= 0]
                said.text = said.text[: min(ends, default=None)]
            text, reasoning = said.text, said.reasoning
        if self.has_to_call and self.tool_calls is not None and reason == "stop":
            calls = self.tool_calls.of_json(text)
            text = "" if calls else text
        if calls and not self.work.parallel_tool_calls:
            calls = calls[:1]
        return Answer(text, "tool_calls" if calls and reason == "stop" else reason, reasoning or None, calls or (),
                      logprobs)  # fmt: skip

    def generated(self, info: EngineInfo, now: float) -> Generated:
        """What it has come to, at `now` by the clock of `admitted_at`."""
        first_token_at = self.first_token_at
        return Generated(
            id=self.work.id,
            answers=tuple(self.answers),
            prompt_tokens=len(self.prompt),
            completion_tokens=self.completion_tokens,
            first_token_s=first_token_at - self.admitted_at if first_token_at is not None else 0.0,
            total_s=now - self.admitted_at,
            model=info.model,
            fingerprint=info.fingerprint,
            note=info.note,
            cached_tokens=self.row.cached_tokens if self.row is not None else self.cached_tokens,
            reasoning_tokens=self.reasoning_tokens,
            sampling=self.drawn,
        )


class RequestReader:
    """Reads requests for one model, and begins their runs."""

    def __init__(self, loaded: LoadedModel, grammars: Grammars, *, special_tokens: str, max_answer_tokens: int) -> None:
        self._loaded = loaded
        self._grammars = grammars
        self._max_answer_tokens = max_answer_tokens

        def open_prompts(tokenizer: Any) -> Prompts:
            return Prompts(
                tokenizer, loaded.context_tokens, context_known=loaded.context_known, special_tokens=special_tokens
            )

        self._prompts = open_prompts(loaded.tokenizer)
        self.long = LongPrompts(loaded.tokenizer, open_prompts)
        self._channels = Channels(loaded.tokenizer)
        self._decoding = Decoding(loaded.tokenizer)

    def read(
        self, work: GenerationWork, now: float, fits: Callable[[int], bool], tokens: list[int] | None = None
    ) -> Request:
        """`fits`: whether there is memory for so many tokens; `tokens`: the prompt, where it has been read already.
        Raises `RequestError`."""
        tokens = self._prompts.tokens(work) if tokens is None else tokens
        request = Request(
            work,
            np.asarray(tokens, dtype=np.int64),
            now,
            max_tokens=work.max_tokens or self._most_tokens(len(tokens), fits),
            drawn=sampling_of(work, self._loaded.defaults.sampling),
            schema=work.schema,
        )
        if work.tools and work.tool_choice != "none":
            request.tool_calls = ToolCalls(self._channels.parse_calls, work.tools)
            if request.has_to_call:
                request.schema = forced_schema(work.tools, work.tool_choice)
            elif self._channels.parse_calls is None:
                raise RequestError(
                    "tools: how this model writes calls of tools is not known here; with tool_choice 'required', or a "
                    "tool's name, it is kept to one"
                )
            elif work.schema is not None and self._channels.calls_are_json:
                request.schema = schema_with_calls(work.tools, work.schema)
        if work.messages is not None:
            end = self._decoding.decode(tokens[-_END_OF_PROMPT - len(self._channels.marks.start_tokens) :])
            request.thinking = self._channels.opens_with_thought(end)
            if work.continue_final_message:
                request.thinking = self._channels.is_in_thought(work.messages[-1]["content"])
        return request

    def _most_tokens(self, prompt_tokens: int, fits: Callable[[int], bool]) -> int:
        """Of an answer whose request does not say: what the context leaves, the operator allows, and memory holds."""
        most = min(self._loaded.context_tokens - prompt_tokens, self._max_answer_tokens)
        while most > 1 and not fits(prompt_tokens + most):
            most //= 2
        return most

    def begin(self, request: Request, *, alone: bool) -> Row:
        """A fresh run of its next answer. Raises `RequestError`, and what a library makes of what it was given."""
        work = request.work
        request.splitter = None
        marks: tuple[str, ...] = ()
        if work.messages is not None:
            calls = request.tool_calls is not None and not request.has_to_call
            request.splitter = self._channels.splitter(thinking=request.thinking, calls=calls)
            marks = self._channels.marks_of(calls=calls)
        request.text = TextBuilder(self._new_text(), work.stop, marks)
        request.logprobs.clear()
        processors = tuple(self._processors(request))
        draws = Draws(request.sampling)
        return Row(
            work.id, request.prompt, request.max_tokens, draws, processors, work.stop_token_ids, alone, work.stream
        )

    def _processors(self, request: Request) -> Iterator[Any]:
        """Fresh for every run, because they go along with the answer."""
        work, ends = request.work, self._loaded.tokenizer.eos_token_ids
        if work.logit_bias:
            yield OwnProcessor(bias(work.logit_bias, self._loaded.vocabulary_size))
        if (penalty := request.drawn["repetition_penalty"]) != 1:
            yield OwnProcessor(repetition_penalty(penalty))
        if work.frequency_penalty or work.presence_penalty:
            yield OwnProcessor(answer_penalties(work.frequency_penalty, work.presence_penalty, len(request.prompt)))
        constraint = None
        if request.schema is not None:  # the first was made to check the schema
            constraint, request.constraint = request.constraint or self._grammars.constraint(request.schema), None
        bounded = constraint is not None or work.max_reasoning_tokens is not None
        if constraint is not None and request.tool_calls is not None and not request.has_to_call:
            constraint = self._channels.or_calls(self._new_text, constraint)
        if work.messages is not None and self._channels.thinks and bounded:
            limit = work.max_reasoning_tokens
            constraint = self._channels.thinking(self._new_text, request.thinking, limit, constraint)
        request.keeper = constraint
        if constraint is not None:
            yield constraint
        if work.ignore_eos and ends:
            yield OwnProcessor(forbid(ends, math.inf))
        if work.min_tokens and (forbidden := {*ends, *work.stop_token_ids}):
            yield OwnProcessor(forbid(forbidden, len(request.prompt) + work.min_tokens))

    def _new_text(self) -> Detokenizer:
        return Detokenizer(self._decoding)

    def likely(self, request: Request, token: Token) -> Likely:
        """What there is to tell of a token that was drawn, and of those that were likely in its place."""
        count = request.work.top_logprobs
        others: list[Likely] = []
        if count:
            import mlx.core as mx

            chosen: Any = mx.argpartition(-token.logprobs, kth=count)[:count].tolist()
            others = [self._one(request, token, each) for each in chosen]
        drawn = self._one(request, token, token.token)
        return replace(drawn, others=tuple(sorted(others, key=lambda each: -each.logprob)))

    def _one(self, request: Request, place: Token, token: int) -> Likely:
        text = self._decoding.piece(token, first=not request.logprobs)
        raw = self._decoding.raw(token) if REPLACEMENT in text else None
        return Likely(text, float(place.logprobs[token].item()), raw=raw)
