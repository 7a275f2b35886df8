"""What a server's chunks come to: pieces of text as they come, and answers at the end.

The server is another program, which may send anything: what is no answer raises `UpstreamError`, and what is taken is
what the queue's contract can hold.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..protocol import Answer, Call, Likely, Progress
from .failures import UpstreamError, error_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..protocol import GenerationWork

_LEAST_LOGPROB = -9999.0
_MAX_NAME, _MAX_ID, _MAX_CALLS = 128, 256, 128
_MAX_CHARACTERS = 64 * 2**20
"""Of all that is kept of an answer."""
_MAX_COUNT = 2**53
_REASONS = {
    "length": ("length", "max_tokens", "max_length", "max_output_tokens", "model_length", "token_limit",
               "model_context_window_exceeded"),
    "tool_calls": ("tool_calls", "tool_call", "tool_use", "function_call"),
    "kept back": ("content_filter", "safety", "sensitive", "recitation", "prohibited_content", "blocklist", "spii"),
    "given up": ("abort", "aborted", "cancelled", "canceled", "error", "interrupted", "network_error", "timeout",
                 "insufficient_system_resource", "unavailable", "malformed_function_call"),
}  # fmt: skip
"""What servers of several makes call how an answer ended; all else is that it ended by itself."""
_MEANS = {word: meaning for meaning, words in _REASONS.items() for word in words}


@dataclass(slots=True)
class _CallInParts:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)

    def is_other(self, name: str, call_id: str, written: str, *, numbered: bool) -> bool:
        """Whether a part that names a tool is of another call. There are servers that number all calls alike."""
        if call_id:
            return self.id not in ("", call_id[:_MAX_ID])
        return (not numbered and name != self.name) or (bool(written) and _is_object("".join(self.arguments)))


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[_CallInParts] = field(default_factory=list)
    calls_by_index: dict[int, _CallInParts] = field(default_factory=dict)
    logprobs: list[Likely] = field(default_factory=list)
    reason: str | None = None

    @property
    def has_begun(self) -> bool:
        return bool(self.text or self.reasoning or self.calls)

    def take_call(self, delta: Any) -> int:
        """Takes a call, or the next part of one; how many characters of arguments it has."""
        if not isinstance(delta, dict) or not isinstance(function := delta.get("function") or {}, dict):
            raise UpstreamError("the upstream wrote a call of a tool that is no object")
        call_id, name, index = _text(delta.get("id")), _text(function.get("name")), delta.get("index")
        written = _arguments(function.get("arguments"))
        call = self._begun(index, call_id)
        if call is None or (name and call.is_other(name, call_id, written, numbered=isinstance(index, int))):
            if len(self.calls) == _MAX_CALLS:
                raise UpstreamError(f"the upstream called more than {_MAX_CALLS} tools")
            call = _CallInParts()
            self.calls.append(call)
            self.calls_by_index[index if isinstance(index, int) else -len(self.calls)] = call
        call.id, call.name = call.id or call_id[:_MAX_ID], call.name or name
        call.arguments.append(written)
        return len(written)

    def _begun(self, index: Any, call_id: str) -> _CallInParts | None:
        """The call that a part belongs to, if it is not the first of another. Some servers number none."""
        if isinstance(index, int):
            return self.calls_by_index.get(index)
        begun = [each for each in self.calls if call_id and each.id == call_id[:_MAX_ID]] or self.calls
        return begun[-1] if begun else None

    def answer(self, work: GenerationWork, number: int, *, cancelled: bool) -> Answer:
        reason = self.reason or "cancelled"
        calls: tuple[Call, ...] = ()
        if not (cancelled and self.reason is None):  # of a call that was not ended nobody knows whether it is whole
            calls = tuple(self._calls(number))
        if calls and not work.parallel_tool_calls:
            calls = calls[:1]
        if calls and reason == "stop":
            reason = "tool_calls"
        elif not calls and reason == "tool_calls":
            reason = "stop"
        reasoning = "".join(self.reasoning) or None
        return Answer("".join(self.text), reason, reasoning, calls, tuple(self.logprobs) if work.logprobs else None)

    def _calls(self, number: int) -> Iterator[Call]:
        for at, call in enumerate(self.calls):
            if not 0 < len(call.name) <= _MAX_NAME:
                raise UpstreamError("the upstream called a tool without a name, or with one that is too long")
            yield Call(call.name, "".join(call.arguments) or "{}", call.id or f"call_{number}_{at}")


class Answers:
    """All answers to one piece of work, however many requests they take."""

    def __init__(self, work: GenerationWork) -> None:
        self._work = work
        self._choices: list[_Choice] = []
        self._before = 0
        """How many choices there were when the request that runs was sent."""
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.reasoning_tokens = 0
        self._completion_tokens = 0
        """Of requests that ended."""
        self._pieces = 0
        """Chunks of the one that runs that held something, which are about as many tokens."""
        self._usage: Mapping[str, Any] = {}
        self._characters = 0
        self.model: str | None = None
        """What the server says that answers."""

    @property
    def completion_tokens(self) -> int:
        return self._completion_tokens + (_count(self._usage, "completion_tokens") or self._pieces)

    @property
    def has_begun(self) -> bool:
        """Whether anything was said."""
        return bool(self.completion_tokens)

    @property
    def is_whole(self) -> bool:
        return len(self._choices) >= self._work.n and all(each.reason is not None for each in self._choices)

    @property
    def has_ended(self) -> bool:
        """Whether the request that runs was answered, whatever else the server may say to it."""
        return len(self._choices) > self._before and all(each.reason is not None for each in self._choices)

    def __len__(self) -> int:
        return len(self._choices)

    def take(self, chunk: Mapping[str, Any]) -> list[Progress]:
        """What a chunk adds, for whoever streams. Raises `UpstreamError` where it is no part of an answer."""
        if (error := error_in(chunk)) is not None:
            raise error
        if isinstance(usage := chunk.get("usage"), dict):
            self._usage = usage
        if isinstance(model := chunk.get("model"), str):
            self.model = model
        choices = _list(chunk.get("choices"))
        return [progress for each in choices if (progress := self._take_choice(each)) is not None]

    def _take_choice(self, part: Any) -> Progress | None:
        if not isinstance(part, dict) or not isinstance(index := part.get("index") or 0, int):
            raise UpstreamError("the upstream sent a choice that is no object with an index")
        number = self._before + index
        if not self._before <= number < self._work.n:
            raise UpstreamError(f"the upstream sent choice {index} of {self._work.n - self._before}")
        while len(self._choices) <= number:
            self._choices.append(_Choice())
        choice = self._choices[number]
        # A server that does not know streams sends a message, and some that do send at the end all of it once more.
        delta = part.get("delta") or (not choice.has_begun and part.get("message")) or {}
        if not isinstance(delta, dict):
            raise UpstreamError("the upstream sent a piece of an answer that is no object")
        text, thoughts = _content(delta.get("content"))
        text = text or _text(part.get("text")) or _text(delta.get("refusal"))  # a continued prompt's is not in a delta
        reasoning = _text(delta.get("reasoning_content")) or _text(delta.get("reasoning")) or thoughts
        former = delta.get("function_call")
        calls = _list(delta.get("tool_calls")) or ([{"index": 0, "function": former}] if former else [])
        self._characters += len(text) + len(reasoning) + sum(map(choice.take_call, calls))
        if self._characters > _MAX_CHARACTERS:
            raise UpstreamError(f"the upstream's answer is longer than {_MAX_CHARACTERS:,} characters")
        if self._work.logprobs and part.get("logprobs"):
            choice.logprobs += _likely(part["logprobs"])
        if reason := part.get("finish_reason"):  # some servers say "" until it has ended
            choice.reason = _reason(reason)
        self._pieces += bool(text or reasoning or calls)
        if not (text or reasoning):
            return None
        choice.text.append(text)
        choice.reasoning.append(reasoning)
        return Progress(self._work.id, text, reasoning, number)

    def end_of_request(self) -> None:
        """The request that runs was answered. Raises `UpstreamError` where that was no whole answer."""
        if not self.has_ended:
            raise UpstreamError("the upstream ended its answer before it was whole")
        self._count_usage()
        self._before = len(self._choices)

    def _count_usage(self) -> None:
        self.prompt_tokens = _count(self._usage, "prompt_tokens") or self.prompt_tokens
        if self._before == 0:
            self.cached_tokens = _count(self._usage.get("prompt_tokens_details"), "cached_tokens")
        self.reasoning_tokens += _count(self._usage.get("completion_tokens_details"), "reasoning_tokens")
        self._completion_tokens = self.completion_tokens
        self._usage, self._pieces = {}, 0

    def whole(self) -> tuple[Answer, ...]:
        """The answers, all `n`. Raises `UpstreamError` where one is not what was asked for."""
        answers = tuple(each.answer(self._work, at, cancelled=False) for at, each in enumerate(self._choices))
        for answer in answers:
            self._check(answer)
        return answers

    def so_far(self) -> tuple[Answer, ...]:
        """What there is of a work that ends now; one of them at least says that it was cancelled."""
        self._count_usage()
        choices = self._choices
        if all(each.reason is not None for each in choices):
            choices = [*choices, _Choice()]
        return tuple(each.answer(self._work, at, cancelled=True) for at, each in enumerate(choices))

    def _check(self, answer: Answer) -> None:
        """Some servers pass over what they do not know. Nobody is to take their answer for what was promised."""
        if answer.text and answer.logprobs == ():
            raise UpstreamError("logprobs: the upstream sends none with its answers", permanent=True)
        if answer.finish_reason == "length":
            return
        strict = [tool["function"]["name"] for tool in self._work.tools if tool["function"].get("strict")]
        for call in answer.calls:
            if call.name in strict and not _is_object(call.arguments):
                raise UpstreamError(f"tools: the upstream called {call.name} with arguments that are no JSON object")
        wanted = self._work.tool_choice
        if self._work.tools and wanted not in ("auto", "none"):
            if not answer.calls:
                raise UpstreamError("tool_choice: the upstream answered without the call that it was to make")
            if wanted.startswith("=") and any(call.name != wanted[1:] for call in answer.calls):
                raise UpstreamError("tool_choice: the upstream called another tool than the one that it was to call")
        elif self._work.schema is not None and not answer.calls:
            try:
                json.loads(answer.text)
            except (ValueError, RecursionError):
                raise UpstreamError(
                    "response_format: the upstream's answer is no JSON, so it does not keep to schemas"
                ) from None


def _text(value: Any) -> str:
    """Text that UTF-8 can hold: JSON can spell half a surrogate pair."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UpstreamError("the upstream sent something else where text belongs")
    return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _content(value: Any) -> tuple[str, str]:
    """Text, and thoughts. Some servers send a list of parts."""
    if not isinstance(value, list):
        return _text(value), ""
    texts, thoughts = [], []
    for part in value:
        match part:
            case {"type": "thinking", "thinking": list(thought)}:
                thoughts.append(_content(thought)[0])
            case {"type": "thinking", "thinking": thought}:
                thoughts.append(_text(thought))
            case {"type": "text" | "output_text", "text": text} | {"type": "refusal", "refusal": text}:
                texts.append(_text(text))
            case _:
                raise UpstreamError("the upstream answered with a part that is no text")
    return "".join(texts), "".join(thoughts)


def _arguments(value: Any) -> str:
    """Of a call, as JSON, of which some servers make text and some do not."""
    if not isinstance(value, dict):
        return _text(value)
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        raise UpstreamError("the upstream called a tool with numbers that JSON does not have") from None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _list(value: Any) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise UpstreamError("the upstream sent something else where a list belongs")
    return value or []


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and 0 < value < _MAX_COUNT else 0


def _reason(given: Any) -> str:
    meaning = _MEANS.get(_text(given).lower(), "stop")
    if meaning == "kept back":
        raise UpstreamError(f"the upstream keeps its answer back ({given})", permanent=True)
    if meaning == "given up":
        raise UpstreamError(f"the upstream gave its answer up ({given})")
    return meaning


def _likely(logprobs: Any) -> Iterator[Likely]:
    """Of a chat, or in the older form of a continued prompt."""
    if not isinstance(logprobs, dict):
        raise UpstreamError("the upstream sent logprobs that are no object")
    tokens = logprobs.get("tokens")
    if isinstance(tokens, list):
        values, tops = (_list(logprobs.get(name)) for name in ("token_logprobs", "top_logprobs"))
        for at, token in enumerate(tokens):
            top = tops[at] if at < len(tops) and isinstance(tops[at], dict) else {}
            others = sorted((Likely(_text(name), _logprob(each)) for name, each in top.items()), key=_unlikely)
            yield Likely(_text(token), _logprob(values[at] if at < len(values) else None), tuple(others))
        return
    for each in _list(logprobs.get("content")):
        if not isinstance(each, dict):
            raise UpstreamError("the upstream sent a token's logprob that is no object")
        tops = [top for top in _list(each.get("top_logprobs")) if isinstance(top, dict)]
        yield replace(_likely_token(each), others=tuple(map(_likely_token, tops)))


def _likely_token(said: dict[str, Any]) -> Likely:
    text, raw = _text(said.get("token")), None
    if "\ufffd" in text and isinstance(said.get("bytes"), list):
        with contextlib.suppress(ValueError, TypeError):
            raw = bytes(said["bytes"])
    return Likely(text, _logprob(said.get("logprob")), raw=raw)


def _unlikely(token: Likely) -> float:
    return -token.logprob


def _logprob(value: Any) -> float:
    """Neither JSON nor the contract has an infinity."""
    if not isinstance(value, int | float) or value != value:  # NaN; and not every int is a float
        return _LEAST_LOGPROB
    return float(min(max(value, _LEAST_LOGPROB), 0.0))
