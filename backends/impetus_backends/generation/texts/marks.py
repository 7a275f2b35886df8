"""The marks of families that mlx-lm does not know: around what a model thinks, and around the calls that it writes.

Sources: the models' own chat templates, which say to the model how it is to write a call.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .templates import template_for_tools

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .tool_calls import Parse

# mlx-lm knows the first where they are tokens of the vocabulary; then Magistral's, Cohere's, Seed's, Kimi-VL's,
# MiniMax-M3's, Hunyuan 3's, Apertus's, EXAONE Deep's.
_THOUGHTS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<mm:think>", "</mm:think>"),
    ("<think:opensource>", "</think:opensource>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<thought>", "</thought>"),
)
ANSWERS = (
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<|START_TEXT|>", "<|END_TEXT|>"),
)
"""What Cohere's models put around an answer in words."""


@dataclass(frozen=True, slots=True)
class CallMarks:
    """How a family writes its calls. `parse`: reads what stands between the marks; `write`: makes the text of calls
    where its template makes none; `bare`: how an answer begins that is nothing but calls, where they need no mark."""

    start: str
    end: str
    parse: Parse
    write: Callable[[Sequence[Mapping[str, Any]]], str] | None = None
    bare: str = ""


def parse_json(text: str, tools: object) -> list[dict[str, Any]]:
    """A call or a list of them in JSON, with the words for name and arguments that one family or another has."""
    written = json.loads(text)
    return [
        {
            "name": call.get("name", call.get("tool_name")),
            "arguments": call.get("arguments", call.get("parameters", {})),
        }
        for call in (written if isinstance(written, list) else [written])
    ]


def _write_hermes(calls: Sequence[Mapping[str, Any]]) -> str:
    """As Hermes does, each by itself."""
    written = (json.dumps({name: call[name] for name in ("name", "arguments")}, ensure_ascii=False) for call in calls)
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in written)


_CALLS = (
    CallMarks("<|tool_call|>", "<|/tool_call|>", parse_json),  # Granite 3, which closes none
    CallMarks("<tool_call>", "</tool_call>", parse_json, _write_hermes),  # SmolLM3
)
"""Of templates that write no calls, though they say to the model how to."""


def call_marks(tokenizer: Any) -> CallMarks | None:
    """By the template that is taken where there are tools."""
    template = template_for_tools(tokenizer)
    return next((marks for marks in _CALLS if marks.start in template), None)


def thought_marks(tokenizer: Any) -> tuple[str, str] | None:
    """mlx-lm's, or those that are tokens of the vocabulary, or that the template writes or looks for."""
    if tokenizer.has_thinking:
        return tokenizer.think_start, tokenizer.think_end
    vocabulary, template = tokenizer.get_vocab(), template_for_tools(tokenizer)
    known = (marks for marks in _THOUGHTS if all(mark in vocabulary for mark in marks))
    spelt = (marks for marks in _THOUGHTS if any(mark in template for mark in marks))
    return next(known, None) or next(spelt, None)
