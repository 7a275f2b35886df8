"""A model's chat template, and whether it says what it is given.

Templates are programs, and some leave out without a word what comes in a form that they do not expect: that of LLaVA
takes the content of a message only as a list of parts, and of a plain text it makes nothing. So texts that nobody else
would write are sent through a template before it is used, and looked for in what comes out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...errors import RequestError
from .detokenize import common_beginning
from .marks import call_marks
from .templates import before_mark, template_for_tools
from .time_limit import MOST_S, EndlessError, time_limit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ...protocol import GenerationWork

_PROBES = ("Zkqv-17 quuxly", "Vbnm-29 fnordly")
_PROBE = re.compile(r"Zkqv-(\d+) quuxly")
_MOST_SHAPES = 256
"""Of conversations that are remembered."""
_CALL: dict[str, Any] = {
    "id": "zkqvfxnrd", "type": "function", "function": {"name": "wobblim", "arguments": {"at": "gribble"}},
}  # fmt: skip
_NOT_DESCRIBED: dict[str, Any] = {"description": "", "parameters": {"type": "object", "properties": {}}}
"""What is meant by a tool that leaves these out."""
# Arguments of `apply_chat_template` that are no variables of a template.
_OWN_OPTIONS = {
    "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens", "self",
}  # fmt: skip
# Templates that take an effort know three.
_EFFORTS = {"minimal": "low", "xhigh": "high", "max": "high", "none": "low"}
# transformers marks what is to be text by these, and takes them out of a text first.
_MARKS = ("\U000f0000", "\U000f0001")
# Mistral's templates take no other ids of calls than those of nine characters.
_SHORT_IDS = re.compile(r"id\s*\|\s*length\s*!=\s*9")
_ENDLESS = f"the model's chat template did not come to an end within {MOST_S} s of computing"


class Conversations:
    """Turns messages into the tokens of a prompt. `tokenizer`: mlx-lm's `TokenizerWrapper`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._parts = False
        """Whether contents go into the template as lists of parts, each a text."""
        template = template_for_tools(tokenizer)
        self._short_ids = _SHORT_IDS.search(template) is not None
        self._thoughts_name = "reasoning_content"
        """What templates call the thoughts in a message."""
        if "reasoning_content" not in template and re.search(r"message(\.|\[.)thinking", template):
            self._thoughts_name = "thinking"
        self._calls_tried = False
        """Whether the next two are known, which is not before a conversation has a call."""
        self._writes_arguments = False
        """Whether the template takes the arguments of a call as the JSON that was written."""
        self._loses_calls = False
        """Whether it writes nothing of a call."""
        self._marks = call_marks(tokenizer)
        self._unsaid: dict[tuple[Any, ...], int | None] = {}
        """By the shape of a conversation: the first of its messages that the template leaves out."""
        self._has_tools: bool | None = None
        """Whether the template says what tools there are; not known before a request has some."""
        self.endless = False
        """Whether the template did not come to an end with the shortest of conversations."""
        if tokenizer.has_chat_template and not self._says_texts():
            self._parts = True
            if not self._says_texts():
                self._parts = False

    def tokens(self, work: GenerationWork, *, special_tokens_as_text: bool = False) -> list[int]:
        """The conversation as the template writes it, with the assistant's turn opened. Raises `RequestError`.

        `special_tokens_as_text`: a token of the vocabulary that is no piece of text (an added one, special or not,
        white space aside) comes from the template alone. Where a message spells one, that is read as other text is.
        """
        messages = work.messages or ()
        if not self._tokenizer.has_chat_template:
            raise RequestError("this model has no chat template and takes no messages: send `prompt` instead")
        if self.endless:
            raise RequestError(_ENDLESS)
        options = self._options(work)
        if any(each.get("tool_calls") for each in messages):
            if not self._calls_tried:
                self._learn_how_calls_go_in()
            if self._loses_calls and (self._marks is None or self._marks.write is None):
                raise RequestError(
                    "this model's chat template leaves out what an assistant called: say it in the text of messages"
                )
        try:
            if special_tokens_as_text:
                tokens = self._tokens_of_text_alone(messages, options)
            else:
                tokens = list(self._tokenizer.encode(self._written(messages, options), add_special_tokens=False))
        except EndlessError:
            raise RequestError(_ENDLESS) from None
        except RequestError:
            raise
        except Exception as error:  # templates are programs, and refuse by raising what they like
            if (named := _with_names_of_tools(messages)) != messages:
                return self.tokens(replace(work, messages=named), special_tokens_as_text=special_tokens_as_text)
            if (at := next((at for at, each in enumerate(messages) if _calls_with_text(each)), None)) is not None:
                raise RequestError(
                    f"message {at + 1}: a tool is called with arguments that are no JSON object, and this model's chat "
                    f"template refuses that: {error}"
                ) from error
            raise RequestError(f"the model's chat template refused the messages: {error}") from error
        if (at := self._left_out(messages, options)) is not None:
            raise RequestError(
                f"this model's chat template leaves out what message {at + 1} says, of the role "
                f"{messages[at]['role']!r:.40}: send `prompt` instead, or give its text another role or place"
            )
        return tokens

    def with_calls(self, calls: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
        """What the template makes of an answer that is these calls, from where an answer in words would begin. Raises
        what it likes."""
        if not self._calls_tried:
            self._learn_how_calls_go_in()
        asked = {"role": "user", "content": _PROBES[0]}
        options = {"tools": [dict(tool) for tool in tools], "add_generation_prompt": False}
        words, called = (
            self._written([asked, {"role": "assistant", **answer}], options)
            for answer in ({"content": _PROBES[1]}, {"content": "", "tool_calls": calls})
        )
        head, _, tail = words.partition(_PROBES[1])
        if not called.startswith(head):
            head = before_mark(common_beginning(head, called))
        return called.removeprefix(head).removesuffix(tail)

    def in_words(self) -> str:
        """What it makes of an answer in words, the turn before it included."""
        asked = {"role": "user", "content": _PROBES[0]}
        return self._written([asked, {"role": "assistant", "content": _PROBES[1]}], {"add_generation_prompt": False})

    def _options(self, work: GenerationWork) -> dict[str, Any]:
        """What else the template is told."""
        if taken := sorted(_OWN_OPTIONS & work.template_variables.keys()):
            raise RequestError(f"chat_template_kwargs: {taken[0]} is not for a request to say")
        options = dict(work.template_variables)
        if work.reasoning_effort is not None:
            options.setdefault("reasoning_effort", _EFFORTS.get(work.reasoning_effort, work.reasoning_effort))
            if work.reasoning_effort == "none":
                options.setdefault("enable_thinking", False)
        if work.tools and work.tool_choice != "none":
            if not self._takes_tools(work.tools):
                raise RequestError("this model's chat template has no place for tools: leave them out, or take a model "
                                   "that was trained to call tools")  # fmt: skip
            options["tools"] = self._described(work.tools)
        if work.continue_final_message:
            options |= {"continue_final_message": True, "add_generation_prompt": False}
        return options

    def _described(self, tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As they are, but for a template that cannot do without what a tool may leave out, as gpt-oss' cannot."""
        described = [{**tool, "function": _NOT_DESCRIBED | tool["function"]} for tool in tools]
        plain = [dict(tool) for tool in tools]
        if described != plain:
            try:
                self._written([{"role": "user", "content": _PROBES[0]}], {"tools": plain})
            except Exception:  # noqa: BLE001 - it says why when it refuses the request itself
                return described
        return plain

    def _takes_tools(self, tools: Sequence[Mapping[str, Any]]) -> bool:
        if self._has_tools is None:
            trial = ({"role": "user", "content": _PROBES[0]},)
            try:
                said = self._written(trial, {"tools": [dict(tool) for tool in tools]})
                self._has_tools = said != self._written(trial)
            except Exception:  # noqa: BLE001 - it says why when it refuses the request itself
                return True
        return self._has_tools

    def _learn_how_calls_go_in(self) -> None:
        """Most templates take arguments as the object that they are. Some, as DeepSeek's, put them behind other text as
        they come, and fail on an object or write it as Python would. Some, as SmolLM3's, write no calls at all.
        """
        self._calls_tried = True
        trial: list[dict[str, Any]] = [
            {"role": "user", "content": _PROBES[0]},
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "content": _PROBES[1], "tool_call_id": _CALL["id"]},
        ]
        for self._writes_arguments in (False, True):
            try:
                made = self._written(trial)
            except Exception:  # noqa: BLE001 - templates raise what they like
                continue
            self._loses_calls = not any(word in made for word in ("wobblim", "gribble"))
            if self._loses_calls or "{'at'" not in made:
                return
        self._writes_arguments = False  # it says why when it refuses the messages themselves

    def _written(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None = None) -> str:
        told: dict[str, Any] = {"add_generation_prompt": True, **(options or {})}
        with time_limit():
            return str(self._tokenizer.apply_chat_template(self._formed(messages), tokenize=False, **told))

    def _tokens_of_text_alone(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> list[int]:
        tokenizer = self._tokenizer._tokenizer  # transformers' own, beneath mlx-lm's
        if self._tokenizer._chat_template is not None:
            raise RequestError("special_tokens: this model's conversations are not written by a template of its own")
        if tokenizer.chat_control_tokens is None:
            added = (each.content for each in tokenizer.added_tokens_decoder.values())
            tokenizer.chat_control_tokens = [each for each in added if each.strip()]
        if any(mark in each["content"] for mark in _MARKS for each in messages):
            raise RequestError(
                "special_tokens: the private characters U+F0000 and U+F0001 cannot be told from the marks by which "
                "special tokens are kept apart: leave them out"
            )
        told: dict[str, Any] = {"add_generation_prompt": True, **options, "sanitize_control_tokens": True}
        with time_limit():
            return list(self._tokenizer.apply_chat_template(self._formed(messages), **told))

    def _formed(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        def form(content: str) -> Any:
            return [{"type": "text", "text": content}] if self._parts else content

        return [named | {"content": form(named["content"])} for named in map(self._named, messages)]

    def _named(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message with what it holds called as this template calls it."""
        named = dict(message)
        if self._writes_arguments and "tool_calls" in named:
            named["tool_calls"] = [_with_written_arguments(call) for call in named["tool_calls"]]
        if self._loses_calls and "tool_calls" in named and self._marks is not None and self._marks.write is not None:
            written = self._marks.write([call["function"] for call in named.pop("tool_calls")])
            named["content"] = "\n".join(filter(None, (named["content"], written)))
        if self._short_ids:
            if "tool_call_id" in named:
                named["tool_call_id"] = _short_id(named["tool_call_id"])
            if "tool_calls" in named:
                named["tool_calls"] = [{**call, "id": _short_id(call.get("id", ""))} for call in named["tool_calls"]]
        if self._thoughts_name in named or "reasoning_content" not in named:
            return named
        thoughts = named.pop("reasoning_content")
        if not (named.get("tool_calls") and named["content"]):  # that of gpt-oss takes one of the two beside a call
            named[self._thoughts_name] = thoughts
        return named

    def _left_out(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> int | None:
        """The first message of which nothing is in what the template makes: tried with texts that nobody else writes in
        the place of each. An assistant's words beside a call do not count, which many templates leave out.

        A template that refuses the trial has taken the messages themselves, so that it is the trial that it does not
        like.
        """
        shape = tuple((each["role"], bool(each["content"]), bool(each.get("tool_calls"))) for each in messages)
        key = (shape, "tools" in options)
        if key not in self._unsaid:
            if len(self._unsaid) == _MOST_SHAPES:
                self._unsaid.clear()
            self._unsaid[key] = None
            trial = [
                each | {"content": f"Zkqv-{at} quuxly"} if each["content"] else each
                for at, each in enumerate(map(dict, messages))
            ]
            with contextlib.suppress(Exception):  # templates raise what they like
                said = {int(each) for each in _PROBE.findall(self._written(trial, options))}
                wanted = (at for at, (_, has_text, calls) in enumerate(shape) if has_text and not calls)
                self._unsaid[key] = next((at for at in wanted if at not in said), None)
        return self._unsaid[key]

    def _says_texts(self) -> bool:
        """Whether what a user says is to be found in what the template makes of it, in the form that is tried."""
        try:
            return _PROBES[0] in self._written([{"role": "user", "content": _PROBES[0]}])
        except EndlessError:
            self.endless = True
        except Exception:  # noqa: BLE001 - it says why when it refuses the messages themselves
            pass
        return True


def _with_names_of_tools(messages: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Results of tools with the names of those, which OpenAI's messages leave to the calls that they answer."""
    called = {call.get("id"): call["function"]["name"] for each in messages for call in each.get("tool_calls") or ()}
    return tuple(
        {"name": called[each["tool_call_id"]], **each}
        if each["role"] == "tool" and each.get("tool_call_id") in called
        else each
        for each in messages
    )


def _calls_with_text(message: Mapping[str, Any]) -> bool:
    return any(not isinstance(call["function"]["arguments"], dict) for call in message.get("tool_calls") or ())


def _with_written_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": written}}


def _short_id(made: str) -> str:
    """The same nine letters and figures for the same id of a call."""
    if len(made) == 9 and made.isascii() and made.isalnum():
        return made
    return hashlib.sha256(made.encode()).hexdigest()[:9]
