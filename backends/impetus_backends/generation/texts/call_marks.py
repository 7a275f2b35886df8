"""Which marks and which parser read the calls that a model writes: those that read what its own template writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import call_forms
from .conversations import Conversations
from .marks import CallMarks, call_marks
from .templates import template_for_tools
from .tool_calls import parse_bare, parse_gemma, parse_nearly_pythonic, parse_pythonic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_BETTER = {"<start_function_call>": parse_gemma, "<|tool_call_start|>": parse_nearly_pythonic}
"""Of families whose calls mlx-lm's own parsers read wrongly, by what begins these."""


def calls_of(tokenizer: Any, read: Callable[[CallMarks, str], Any], thought: Iterable[str]) -> CallMarks | None:
    """mlx-lm's where it knows the family, or those that are known here. Where these do not read what the template makes
    of calls, the form that it shows. None where there is neither, or nothing that reads what it shows.

    `read`: the calls in an answer, by these marks; `thought`: the marks of thoughts.
    """
    known = _known(tokenizer)
    if not tokenizer.has_chat_template:
        return known
    conversations = Conversations(tokenizer)

    def write(calls: Any) -> str:
        return conversations.with_calls(calls, call_forms.probe_tools())

    def reads(marks: CallMarks | None, *, hard: bool) -> bool:
        return marks is not None and call_forms.reads_back(lambda text: read(marks, text), write, hard=hard)

    if conversations.endless or reads(known, hard=True):
        return known
    try:
        around = {*thought, *call_forms.marks_in(conversations.in_words()), *_ends(tokenizer)}
        shown = call_forms.shows_calls(write)
    except Exception:  # noqa: BLE001 - templates raise what they like
        return known
    learnt = call_forms.learn(write, around)
    for marks in (learnt, CallMarks("", "", parse_pythonic, bare="[")):
        if reads(marks, hard=True):
            return _either(marks, known)
    if not shown or reads(known, hard=False):
        return known
    return _either(learnt, known) if reads(learnt, hard=False) else None


def _ends(tokenizer: Any) -> list[str]:
    return [tokenizer.decode([each]) for each in tokenizer.eos_token_ids]


def _either(learnt: CallMarks | None, known: CallMarks | None) -> CallMarks | None:
    """A text that does not begin as what was learnt may be of the form that is known."""
    if learnt is None or known is None or (learnt.start, learnt.end) != (known.start, known.end):
        return learnt

    def parse(text: str, tools: Any) -> Any:
        try:
            return learnt.parse(text, tools)
        except call_forms.OtherFormError:
            return known.parse(text, tools)

    return CallMarks(learnt.start, learnt.end, parse, bare=learnt.bare)


def _known(tokenizer: Any) -> CallMarks | None:
    if tokenizer.has_tool_calling:
        start, end = tokenizer.tool_call_start, tokenizer.tool_call_end
        return CallMarks(start, end, _BETTER.get(start, tokenizer.tool_parser))
    template = template_for_tools(tokenizer)
    if '"parameters": ' in template and "<|start_header_id|>" in template:  # Llama 3.1 and what came after
        return CallMarks("<|python_tag|>", "", parse_bare, bare="{")
    return call_marks(tokenizer)
