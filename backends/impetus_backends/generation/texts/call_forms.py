"""How a model writes calls of tools, learnt from what its own chat template makes of calls that an assistant made.

That is the form that a model was taught. The template is given calls of names and values that nobody else would write,
and what it makes of them is taken apart around these. White space in the form is as a model likes; in values it counts.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .detokenize import common_beginning
from .marks import CallMarks
from .templates import before_mark
from .typed_values import of_any_type, of_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Tools = Sequence[Mapping[str, Any]]
    Write = Callable[[Sequence[Mapping[str, Any]]], str]
    """The answer that makes these calls, as the template has it."""

_ID = "zkqvfxnrd"
_NAMES = ("wobblim", "quuxly")
_KEYS = ("gribble", "snarfle")
_VALUES = ("fnordly", "blorpish")
_WORDS: dict[str, Any] = dict(zip(_KEYS, _VALUES, strict=True))
_NO_TEXTS = (7, True, None, [7], {"x": 7})
_HARD = {
    "text": ' \n  "A", {b} \\ <c>\n ', "null": "null", "digits": "007",
    "count": 2**60 + 1, "on": True, "list": [1, "b"],
}  # fmt: skip
"""Arguments that are easily mistaken for others."""
_MARK = re.compile(r"<[^<>\s]{2,}>?|\[[A-Z_]+\]")
_JSON = json.JSONDecoder()


def probe_tools() -> list[dict[str, Any]]:
    """Whose calls a template is tried with."""
    types = {str: "string", bool: "boolean", int: "integer", list: "array"}
    known = {key: {"type": types[type(value)], "description": "A value."} for key, value in (_HARD | _WORDS).items()}
    schema = {"type": "object", "properties": known, "required": []}
    function = {"description": "A tool.", "parameters": schema}
    return [{"type": "function", "function": {"name": name, **function}} for name in _NAMES]


def reads_back(read: Callable[[str], Any], write: Write, *, hard: bool) -> bool:
    """Whether calls come back from what the template makes of them. `read`: an answer to its `Call`s; `hard`: those of
    arguments that are easily mistaken, and two at once where the template takes two."""
    one, other = _call(0, _HARD if hard else _WORDS), _call(1, _WORDS)
    try:
        if not _same(read(write([one])), [one]):
            return False
    except Exception:  # noqa: BLE001 - templates and parsers raise what they like
        return False
    try:
        both = write([one, other])
    except Exception:  # noqa: BLE001 - it takes one at a time
        return True
    return not hard or _NAMES[1] not in both or _same(read(both), [one, other])


def _same(read: Any, calls: Sequence[Mapping[str, Any]]) -> bool:
    return [{"name": each.name, "arguments": json.loads(each.arguments)} for each in read or ()] == [
        call["function"] for call in calls
    ]


def _call(at: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": _NAMES[at], "arguments": dict(arguments)}
    return {"id": _ID, "type": "function", "function": function}


class OtherFormError(ValueError):
    """A text does not begin as the template has calls begin."""


class _Calls(Protocol):
    """How one call is written."""

    def find(self, text: str, at: int) -> tuple[int, int]:
        """Where the probe of this number begins and ends."""
        ...

    def read(self, text: str, at: int, tools: Tools) -> tuple[dict[str, Any], int]:
        """The call that begins there, and where it ends."""
        ...


@dataclass(frozen=True, slots=True)
class _Form:
    """What is around calls."""

    opening: re.Pattern[str]
    calls: _Calls
    between: re.Pattern[str] | None
    closing: str

    def parse(self, text: str, tools: Tools) -> list[dict[str, Any]]:
        """All calls of a text. Raises `OtherFormError` or another `ValueError` where it is anything else."""
        at, found = _past(self.opening, text, 0), []
        while True:
            call, at = self.calls.read(text, at, tools)
            found.append(call)
            if self.closing.startswith(_squeezed(text[at:])):
                return found
            if self.between is None or (between := self.between.match(text, at)) is None:
                raise ValueError("something follows the calls")
            at = between.end()


def shows_calls(write: Write) -> bool:
    one = write([_call(0, _WORDS)])
    return _NAMES[0] in one and all(value in one for value in _VALUES)


def marks_in(text: str) -> set[str]:
    return set(_MARK.findall(text))


def learn(write: Write, no_marks: set[str]) -> CallMarks | None:
    """None where the template does not show it. `no_marks`: what stands around answers in words as well."""
    try:
        one = write([_call(0, _WORDS)])
        calls = _object(one) or _named(one) or _parameters(one, write)
        begin, end = calls.find(one, 0) if calls is not None else (0, 0)
    except Exception:  # noqa: BLE001 - templates raise what they like, and show what they like
        return None
    opening, closing = one[:begin], one[end:]
    mark = next((each for each in _MARK.finditer(opening) if each[0] not in no_marks), None)
    bare = opening.strip() or ("{" if isinstance(calls, _Object) else "")
    # Where there is no mark, what stands before calls is one, such as "Action:" or the name of a role.
    start = mark[0] if mark else bare if bare not in ("[", "{") else ""
    if calls is None or not bare:
        return None
    between = _between(calls, write)
    last = [each[0] for each in _MARK.finditer(closing) if start and each[0] not in no_marks][-1:]
    if last and last[0] in between and start not in between:
        last = []  # it ends one call of several
    form = _Form(
        _literal(opening[mark.end() :] if mark else "" if start else opening),
        calls,
        _literal(between) if between else None,
        _squeezed(closing[: closing.rindex(last[0])] if last else closing),
    )
    return CallMarks(start, last[0] if last else "", form.parse, bare="" if start else bare)


def _between(calls: _Calls, write: Write) -> str:
    try:
        both = write([_call(0, _WORDS), _call(1, _WORDS)])
        return both[calls.find(both, 0)[1] : calls.find(both, 1)[0]] or " "
    except Exception:  # noqa: BLE001 - one call at a time
        return ""


@dataclass(frozen=True, slots=True)
class _Object:
    """A call that is an object of JSON. `name` and `arguments`: its keys; none where the name is the only key."""

    name: str | None
    arguments: str | None

    def find(self, text: str, at: int) -> tuple[int, int]:
        begin = text.rindex("{", 0, text.index(_NAMES[at]))
        end = _JSON.raw_decode(text, begin)[1]
        return begin, end

    def read(self, text: str, at: int, tools: Tools) -> tuple[dict[str, Any], int]:
        call, at = _JSON.raw_decode(text, at)
        if self.name is None or self.arguments is None:
            ((name, arguments),) = call.items()
            return {"name": name, "arguments": arguments}, at
        return {"name": call[self.name], "arguments": call[self.arguments], "id": call.get("id")}, at


def _object(one: str) -> _Object | None:
    begin = one.rfind("{", 0, one.index(_NAMES[0]))
    try:
        call = _JSON.raw_decode(one, begin)[0] if begin >= 0 else {}
    except ValueError:
        return None
    if call == {_NAMES[0]: _WORDS}:
        return _Object(None, None)
    by_value = {str(value): key for key, value in call.items()}
    keys = by_value.get(_NAMES[0]), by_value.get(str(_WORDS), by_value.get(json.dumps(_WORDS)))
    return _Object(*keys) if all(keys) else None


@dataclass(frozen=True, slots=True)
class _Named:
    """A name, and its arguments as an object of JSON."""

    between: re.Pattern[str]

    def find(self, text: str, at: int) -> tuple[int, int]:
        begin = text.index(_NAMES[at])
        return begin, self.read(text, begin, probe_tools())[1]

    def read(self, text: str, at: int, tools: Tools) -> tuple[dict[str, Any], int]:
        name = _name(text, at, tools)
        at = _past(self.between, text, at + len(name))
        arguments, at = _JSON.raw_decode(text, at)
        return {"name": name, "arguments": arguments}, at


def _named(one: str) -> _Named | None:
    begin = one.index(_NAMES[0]) + len(_NAMES[0])
    at = one.find("{", begin)
    while at >= 0:
        try:
            if _JSON.raw_decode(one, at)[0] == _WORDS:
                return _Named(_literal(one[begin:at]))
        except ValueError:
            pass
        at = one.find("{", at + 1)
    return None


@dataclass(frozen=True, slots=True)
class _Parameters:
    """A name, and each of its arguments by itself."""

    after_name: re.Pattern[str]
    one: re.Pattern[str]
    """An argument: its `key`, what tells that it is a `text` where something does or that it is none, its `value`."""
    of_text: str
    """What stands before a text, and"""
    of_others: frozenset[str]
    """before other values."""
    around: tuple[str, str]
    """White space that belongs to the form."""

    def find(self, text: str, at: int) -> tuple[int, int]:
        begin = text.rindex(_NAMES[at], 0, text.index(_KEYS[0], text.index(_NAMES[at])))
        return begin, self.read(text, begin, probe_tools())[1]

    def read(self, text: str, at: int, tools: Tools) -> tuple[dict[str, Any], int]:
        name = _name(text, at, tools)
        at = _past(self.after_name, text, at + len(name))
        schema = next(tool["function"] for tool in tools if tool["function"]["name"] == name).get("parameters") or {}
        arguments: dict[str, Any] = {}
        while found := self.one.match(text, at):
            value = found["value"].removeprefix(self.around[0]).removesuffix(self.around[1])
            before = _squeezed(found["before"])
            if before not in self.of_others:
                arguments[found["key"]] = value
            elif before != self.of_text:
                arguments[found["key"]] = of_any_type(value)
            else:
                arguments[found["key"]] = of_schema(value, schema, found["key"])
            at = found.end()
        return {"name": name, "arguments": arguments}, at


def _parameters(one: str, write: Write) -> _Parameters | None:
    keys = [one.index(key) for key in _KEYS]
    values = [one.index(value) for value in _VALUES]
    name_end = one.rindex(_NAMES[0], 0, keys[0]) + len(_NAMES[0])
    before = one[keys[0] + len(_KEYS[0]) : values[0]]
    inner, last = one[values[0] + len(_VALUES[0]) : keys[1]], one[values[1] + len(_VALUES[1]) :]
    if one[keys[1] + len(_KEYS[1]) : values[1]] != before:
        return None
    value_end = before_mark(common_beginning(inner, last))
    key_begin = inner[len(value_end) :]
    first = one[name_end : keys[0]]
    if not value_end.strip() or not first.endswith(key_begin):
        return None
    others: set[str] = set()
    for value in _NO_TEXTS:
        text = write([_call(0, {_KEYS[0]: value})])
        text = text[text.index(_KEYS[0]) + len(_KEYS[0]) :]
        text = text[: text.index(value_end.strip())].rstrip()
        others.update(text.removesuffix(each) for each in (json.dumps(value), repr(value)) if text.endswith(each))
    befores = "|".join(_core(each) for each in sorted({before, *others}, key=len, reverse=True))
    call_end = _MARK.match(last[len(value_end) :].lstrip())
    follows = "|".join(re.escape(each) for each in (key_begin.strip(), call_end[0] if call_end else "") if each)
    pattern = (
        rf"\s*{_core(key_begin)}(?P<key>[^\n]{{1,256}}?)(?P<before>{befores})"
        rf"(?P<value>.*?){_core(value_end)}(?=\s*(?:{follows}|$))"
    )
    return _Parameters(
        _literal(first.removesuffix(key_begin)),
        re.compile(pattern, re.DOTALL),
        _squeezed(before),
        frozenset(map(_squeezed, others)),
        (before[len(before.rstrip()) :], value_end[: -len(value_end.lstrip())]),
    )


def _name(text: str, at: int, tools: Tools) -> str:
    names: list[str] = sorted((tool["function"]["name"] for tool in tools), key=len, reverse=True)
    if (name := next((name for name in names if text.startswith(name, at)), None)) is None:
        raise OtherFormError
    return name


def _past(literal: re.Pattern[str], text: str, at: int) -> int:
    if (found := literal.match(text, at)) is None:
        raise OtherFormError
    return found.end()


def _literal(text: str) -> re.Pattern[str]:
    return re.compile(rf"\s*{_core(text)}\s*")


def _core(text: str) -> str:
    pieces = (re.escape(each) for each in re.split(r"\s+|(?<=>)(?=<)", text.strip()))
    return r"\s*".join(pieces).replace(_ID, r"[\w.:-]*")


def _squeezed(text: str) -> str:
    return "".join(text.split())
