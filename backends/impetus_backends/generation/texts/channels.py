"""What a model thinks, what it answers and what it wants called, told apart in the text that it makes.

Models mark these by texts that their tokenizers know. mlx-lm knows the marks of most families, and finds them in a text
that comes in pieces. Added here are those of gpt-oss ("harmony"), calls as Llama 3 writes them, which are answers of
nothing but JSON, and the marks of further families (`marks`). Sources:
https://github.com/openai/harmony/blob/main/docs/format.md and
https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import RequestError
from ..processors import OrCalls, Thinking, ThoughtMarks
from .call_forms import probe_tools
from .call_marks import calls_of
from .marks import ANSWERS, thought_marks
from .tool_calls import ToolCalls, parse_bare, parse_harmony

if TYPE_CHECKING:
    from collections.abc import Callable

    from .marks import CallMarks
    from .text import GrowingText
    from .tool_calls import Parse

_HEADER = [
    ("<|channel|>analysis<|message|>", "reasoning"),
    ("<|channel|>final<|message|>", "said"),
    ("<|channel|>final <|constrain|>json<|message|>", "said"),
    ("<|channel|>commentary<|message|>", "said"),
    ("<|channel|>commentary to=functions.", "tool"),
    ("to=functions.", "tool"),
    ("<|start|>assistant", "header"),
    ("<|end|>", "normal"),
    ("<|return|>", "normal"),
]
_HARMONY: dict[str, list[tuple[str, str]]] = {
    "normal": _HEADER,
    "header": [*_HEADER, ("<|message|>", "said")],
    "said": [("<|end|>", "normal"), ("<|return|>", "normal"), ("<|start|>assistant", "header")],
    "reasoning": [("<|end|>", "normal"), ("<|start|>assistant", "header")],
    "tool": [("<|call|>", "normal"), ("<|end|>", "normal"), ("<|return|>", "normal")],
}
_HARMONY_TEXT = {
    state: [(mark, "said" if of == "tool" else of) for mark, of in marks] for state, marks in _HARMONY.items()
}
"""Of an answer in which what looks like a call is none."""
_SPACES = ("\n", "\n\n", " ")
"""What models write between a thought and an answer."""
_HARMONY_ENDS = ("<|channel|>final<|message|>", "<|channel|>final <|constrain|>json<|message|>")


@dataclass(slots=True)
class Said:
    """A piece of a text, or the whole of it, told apart."""

    text: str = ""
    reasoning: str = ""
    calls: list[str] = field(default_factory=list)
    """What stands between the marks of each call."""


class Channels:
    """How one model tells apart what it says. `tokenizer`: mlx-lm's `TokenizerWrapper`."""

    def __init__(self, tokenizer: Any) -> None:
        from mlx_lm.generate import TextStateMachine, make_text_state_machine

        vocabulary = tokenizer.get_vocab()
        self._added = tuple(each.content for each in tokenizer.added_tokens_decoder.values() if each.content.strip())
        self.harmony = "<|channel|>" in vocabulary and "<|message|>" in vocabulary
        self.marks_answers = any(start in vocabulary for start, _ in ANSWERS)
        self._thought = thought = None if self.harmony else thought_marks(tokenizer)
        self.thinks: bool = thought is not None or self.harmony

        def encode(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False))

        spaces = {token for space in _SPACES for token in encode(space)}
        start, *ends = ("", *_HARMONY_ENDS) if self.harmony else thought or ("", "")
        self.marks = ThoughtMarks(
            start,
            tuple(ends),
            encode(start),
            end_tokens := encode(ends[0]),
            encode(f"<|end|><|start|>assistant{ends[0]}") if self.harmony else end_tokens,
            tokenizer.decode(end_tokens[-1:]),
            () if self.harmony else tuple(each for each in spaces if not tokenizer.decode([each]).strip()),
        )
        if self.harmony:
            self.parse_calls: Parse | None = parse_harmony
            """Of what stands between the marks of a call; none: how this model writes calls is not known."""
            self._bare = ""
            self._with_calls = self._without = TextStateMachine(_HARMONY)
            self._as_text = TextStateMachine(_HARMONY_TEXT)
            self._mark_tokens = len(encode("<|channel|>analysis<|message|>"))
            return
        states: dict[str, list[tuple[str, str]]] = {"normal": []}
        if thought is not None:
            states = {"normal": [(thought[0], "reasoning")], "reasoning": [(thought[1], "normal")]}
        if self.marks_answers:
            states["normal"] += [(start, "said") for start, _ in ANSWERS]
            states["said"] = [(end, "normal") for _, end in ANSWERS]
        self._without = self._as_text = TextStateMachine(states)

        def machine(calls: CallMarks) -> Any:
            if calls.parse is tokenizer.tool_parser:
                return make_text_state_machine(_Knowing(tokenizer, thought))
            begin = [(calls.start, "tool")] if calls.start else []
            end = [(calls.end, "normal")] if calls.end else []
            return TextStateMachine(states | {"normal": [*states["normal"], *begin], "tool": end})

        def read(calls: CallMarks, text: str) -> Any:
            splitter = Splitter(machine(calls), self._as_text, "normal", self._added, thought=thought, bare=calls.bare)
            return ToolCalls(calls.parse, probe_tools()).of(splitter.whole(text, complete=True).calls)

        calls = calls_of(tokenizer, read, thought or ())
        self.parse_calls = calls.parse if calls is not None else None
        self._bare = calls.bare if calls is not None else ""
        self._call_marks: tuple[str, ...] = (calls.start, calls.end) if calls is not None else ()
        self._calls_begin = encode(calls.start) if calls is not None else ()
        self._with_calls = machine(calls) if calls is not None else self._without

    def opens_with_thought(self, prompt: str) -> bool:
        """Whether the template has begun the thinking already. `prompt`: as the template wrote it."""
        return bool(self.marks.start) and prompt.rstrip().endswith(self.marks.start)

    def is_in_thought(self, said: str) -> bool:
        """Whether an answer that has begun so has not ended its thought. `said`: as the model wrote it."""
        start, ends = self.marks.start, self.marks.ends
        return bool(start) and said.lstrip().startswith(start) and not any(end in said for end in ends)

    @property
    def calls_are_json(self) -> bool:
        """Whether calls are objects of `schema_with_calls`, which a schema can have beside its answers."""
        return self.parse_calls is parse_bare

    def or_calls(self, new_text: Callable[[], GrowingText], constraint: Any) -> Any:
        """What keeps an answer to something, unless it begins with calls. Raises `RequestError` where these need no
        mark. Those of harmony are in a channel of their own, ahead of the answer's."""
        if self.harmony or self.calls_are_json:
            return constraint
        if self._bare or not self._calls_begin:
            raise RequestError(
                "response_format: this model writes calls of tools without a mark, so that no answer which may be one "
                "can be kept to a schema: send tool_choice 'none' or 'required'"
            )
        return OrCalls(
            ThoughtMarks(self._call_marks[0], (), self._calls_begin, (), (), ""),
            new_text,
            begun=False,
            constraint=constraint,
        )

    def thinking(
        self, new_text: Callable[[], GrowingText], begun: bool, most_tokens: int | None, constraint: Any
    ) -> Thinking:
        """What bounds the thoughts of one answer, and lets what it is kept to begin after them. Harmony's answers
        always begin with a mark, which is as good as a thought, and of which none is cut in two."""
        if self.harmony and most_tokens:
            most_tokens += self._mark_tokens
        return Thinking(
            self.marks,
            new_text,
            begun=begun or self.harmony,
            most_tokens=most_tokens,
            constraint=constraint,
        )

    def marks_of(self, *, calls: bool) -> tuple[str, ...]:
        """What an answer may hold that is none of its text. `calls`: whether these are looked for."""
        if self.harmony:
            return tuple({mark for marks in _HARMONY.values() for mark, _ in marks})
        thought = (self.marks.start, *self.marks.ends)
        answers = (mark for marks in ANSWERS for mark in marks) if self.marks_answers else ()
        return tuple(filter(None, (*thought, *answers, *(self._call_marks if calls else ()))))

    def splitter(self, *, thinking: bool, calls: bool) -> Splitter | None:
        """For one answer; None where there is nothing to tell apart. `thinking`: it begins with a thought; `calls`:
        whether calls are looked for."""
        if not (self.thinks or self.marks_answers or (calls and self.parse_calls is not None)):
            return None
        machine = self._with_calls if calls else self._without
        state = "reasoning" if thinking else "normal"
        bare = self._bare if calls else ""
        return Splitter(machine, self._as_text, state, self._added, thought=self._thought, bare=bare)


class _Knowing:
    """A tokenizer of mlx-lm's that knows the marks of thoughts."""

    def __init__(self, tokenizer: Any, thought: tuple[str, str] | None) -> None:
        self._tokenizer = tokenizer
        self.has_thinking = thought is not None
        self.think_start, self.think_end = thought or ("", "")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


class Splitter:
    """One answer, in pieces. What it says of pieces, taken together, is what it says of the whole.

    A thought comes before all words. Line breaks around thoughts and calls belong to their form, and not to what is
    said. What comes after a call that was fed is told by the whole alone: that may turn out to be no call, and then
    stands before it.
    """

    def __init__(
        self,
        machine: Any,
        as_text: Any,
        state: str,
        tokens_of_marks: tuple[str, ...],
        *,
        thought: tuple[str, str] | None,
        bare: str = "",
    ) -> None:
        """`as_text`: the machine for an answer whose calls are none; `tokens_of_marks`: what is no text where a mark
        begins with it; `thought`: the marks that are words of an answer which has begun; `bare`: an answer that begins
        so is taken for a call from there on."""
        self._machine = machine
        self._as_text = as_text
        self._tokens_of_marks = tokens_of_marks
        self._thought = thought
        self._mark_is_words = False
        """Whether what seems to be a thought is none."""
        self._bare = bare
        self._is_whole = False
        self._first_state = state
        self._state = machine.make_state(state)
        self._held = {"normal": "", "reasoning": ""}
        """White space that may be the last of its kind."""
        self._begun = {"normal": state == "normal", "reasoning": False}
        """Whether white space counts: not before the first word after a mark."""
        self._spoken = False
        self._call: str | None = None
        self._called = False

    @property
    def thinking(self) -> bool:
        return self._kind(self._state[0]) == "reasoning"

    def whole(self, text: str, *, complete: bool, calls: bool = True) -> Said:
        """All of a text, whatever was fed. `complete`: a call that is not closed was meant to be whole, and half a mark
        is text; `calls`: what looks like a call is one, and no text."""
        machine = self._machine if calls else self._as_text
        bare = self._bare if calls else ""
        fresh = Splitter(
            machine, self._as_text, self._first_state, self._tokens_of_marks, thought=self._thought, bare=bare
        )
        fresh._is_whole = True
        said = fresh.feed(text)
        rest = fresh._state[3]
        fresh._state = (*fresh._state[:3], "")
        if complete or not rest.startswith(self._tokens_of_marks):  # else it is a mark that was cut short
            fresh._take(said, fresh._state[0], rest)
        if fresh._call is not None and complete:
            said.calls.append(fresh._call)
        elif fresh._call is not None and self._bare:
            said.text += fresh._call
        if not fresh._called and not said.calls and (fresh._call is None or self._bare):
            said.text += fresh._held["normal"]
        return said

    def feed(self, piece: str) -> Said:
        """What a piece adds."""
        said = Said()
        before = self._state[0]
        self._state, segments = self._machine.split(self._state, piece)
        for at, (state, text) in enumerate(segments):
            if at:
                self._enter(said, before, state)
            self._take(said, state, text)
            before = state
        return said

    def _enter(self, said: Said, before: str, state: str) -> None:
        """A mark came."""
        if before == "tool" and self._call is not None:
            said.calls.append(self._call)
            self._call, self._called = None, True
        if self._thought is not None and "reasoning" in (before, state) and (self._mark_is_words or self._spoken):
            self._mark_is_words = state == "reasoning"
            if state != "tool":
                self._take(said, "normal", self._thought[not self._mark_is_words])
                return
        state = self._kind(state)
        if state == "tool":
            self._call = ""
        elif state in self._begun and state != self._kind(before):
            self._begun[state] = False
            if state == "normal" and not self._spoken:
                self._held[state] = ""

    def _take(self, said: Said, state: str, text: str) -> None:
        if state == "header":
            return
        state = self._kind(state)
        if self._bare and state == "normal" and not self._spoken and text.lstrip().startswith(self._bare):
            self._call = self._call or ""
        if state == "tool" or (state == "normal" and self._call is not None):
            self._call = (self._call or "") + text
            return
        if self._called and not self._is_whole:
            return
        if not self._begun[state]:
            text = text.lstrip("\n") if state == "reasoning" else text.lstrip()
            self._begun[state] = bool(text)
        text = self._held[state] + text
        kept = text.rstrip("\n") if state == "reasoning" else text.rstrip()
        self._held[state] = text[len(kept) :]
        if state == "reasoning":
            said.reasoning += kept
        else:
            said.text += kept
            self._spoken = self._spoken or bool(kept)

    def _kind(self, state: str) -> str:
        is_words = state in ("said", "header") or (state == "reasoning" and self._mark_is_words)
        return "normal" if is_words else state
