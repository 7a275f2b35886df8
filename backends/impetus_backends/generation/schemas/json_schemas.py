"""JSON schemas as people's tools write them, in the words that llguidance knows.

What is changed allows no answer that the schema forbids: bounds beyond what it counts with are drawn in, names of
properties are spelt out. A `format` that it does not know is an annotation, as the standard has it. One thing cannot be
kept to while an answer is made, that items differ, and so it is looked at when the answer is there.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING, Any

from ...errors import RequestError
from .look_ahead import without_look_ahead
from .parts import TYPES, Room, resolved, subschemas, values_of
from .unions import MOST_NESTED, tell_apart

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_OPTIONAL_PROPERTIES = 400
"""In one object. Each may be the next, or none: of 500 and more llguidance loses count in the middle of an answer."""
_FORMATS = {"uuid", "ipv4", "ipv6", "date", "date-time", "time", "duration", "email", "hostname", "uri"}
_HEX = "[0-9a-f]"
_PATTERNS = {
    f"uuid{version}": f"^{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89ab]{_HEX}{{3}}-{_HEX}{{12}}$"
    for version in range(1, 9)
}
# pydantic's names for what is more than an address; an address is one of them as well.
_LIKE = {
    **dict.fromkeys(("ipv4network", "ipv4interface", "ipvanyaddress", "ipvanyinterface", "ipvanynetwork"), "ipv4"),
    **dict.fromkeys(("ipv6network", "ipv6interface"), "ipv6"),
}
_DATE = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
_NAME_PATTERNS = _PATTERNS | {
    "uuid": f"^{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}$",
    "date": f"^{_DATE}$",
    "date-time": f"^{_DATE}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$",
    "ipv4": r"^((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])){3})$",
}
_MOST_INTEGER = 2**63 - 1024
"""The largest double below 2**63."""
_MOST_NUMBER = 1e18
_MOST_UNROLLED = 4
_UNWRITABLE = re.compile("[\\x00-\\x07\\x0b\\x0e-\\x1f\\x7f]")
"""Characters that JSON spells by their number alone, as no answer does: llguidance would leave them out."""
_PIECE = re.compile(
    r"\[\^?\]?(?:\\.|[^\]\\])*\]|\\[xuU]\{([0-9A-Fa-f]+)\}|\\x([0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})|\\.|.",
    re.DOTALL,
)
"""Of a pattern: a class, or a character, by its number or not."""


def keepable(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that llguidance keeps to, as far as it can. Raises `RequestError` for what could never end."""
    made: dict[str, Any] = json.loads(json.dumps(schema))
    room = Room()
    for _ in range(MOST_NESTED):
        if not sum(tell_apart(made, part, room) for part in list(subschemas(made))):
            break
    for part in list(subschemas(made)):
        _spell_out_names(made, part, room)
        _unroll_unique(made, part)
        _draw_in_bounds(part)
        _settle_format(part)
        if part.get("not") in ({}, True):  # so tools write what there never is
            del part["not"]
            part["enum"] = []
        if isinstance(pattern := part.get("pattern"), str):
            part["pattern"] = without_unwritable(without_look_ahead(pattern))
        if isinstance(named := part.get("patternProperties"), dict):
            part["patternProperties"] = {without_unwritable(name): each for name, each in named.items()}
        part.pop("uniqueItems", None)
        _refuse_endless(part)
        _refuse_unwritable(part)
    return made


def repeats_items(schema: dict[str, Any], value: Any) -> bool:
    """Whether somewhere in an answer items are equal that its schema wants to differ."""
    if not any(part.get("uniqueItems") is True for part in subschemas(schema)):
        return False
    try:
        return _repeats(schema, schema, value)
    except RecursionError:  # a schema that refers to itself before it says anything
        return False


def _repeats(root: dict[str, Any], schema: Any, value: Any) -> bool:
    schema = resolved(root, schema)
    if not isinstance(schema, dict):
        return False
    if any(_repeats(root, each, value) for each in schema.get("allOf", ())):
        return True
    for key in ("anyOf", "oneOf"):
        fitting = [each for each in schema.get(key, ()) if _fits_type(resolved(root, each), value)]
        if fitting and all(_repeats(root, each, value) for each in fitting):
            return True
    if isinstance(value, list):
        if schema.get("uniqueItems") is True and len({json.dumps(each, sort_keys=True) for each in value}) < len(value):
            return True
        first = schema.get("prefixItems", [])
        rest = schema.get("items", {})
        return any(_repeats(root, first[at] if at < len(first) else rest, each) for at, each in enumerate(value))
    if isinstance(value, dict):
        named, rest = schema.get("properties", {}), schema.get("additionalProperties", {})
        return any(_repeats(root, named.get(name, rest), each) for name, each in value.items())
    return False


def _fits_type(schema: Any, value: Any) -> bool:
    if not isinstance(schema, dict):
        return schema is not False
    if "const" in schema:
        return bool(schema["const"] == value)
    wanted = schema.get("type")
    names = wanted if isinstance(wanted, list) else [wanted] if isinstance(wanted, str) else list(TYPES)
    return any(isinstance(value, TYPES.get(name, ())) for name in names)


def _spell_out_names(root: dict[str, Any], part: dict[str, Any], room: Room) -> None:
    """`propertyNames` becomes the properties that there may be, or the pattern of their names."""
    if "propertyNames" not in part or "patternProperties" in part:
        return
    names, rest = resolved(root, part["propertyNames"]), part.get("additionalProperties", True)
    if not isinstance(names, dict):
        return
    listed = values_of(root, names)
    own = part.get("properties", {})
    if listed is not None:
        allowed = [name for name in listed if isinstance(name, str)]
        if not set(own) <= set(allowed) or rest is False:
            return
        room.take(rest, len(allowed))
        part["properties"] = own | {name: rest for name in allowed if name not in own}
        part["additionalProperties"] = False
    elif not set(names) - {"type", "title", "description"}:
        pass  # any text
    elif (pattern := _name_pattern(names)) is not None and not own:
        part["patternProperties"] = {pattern: rest}
        part["additionalProperties"] = False
    else:
        return
    del part["propertyNames"]


def _name_pattern(names: dict[str, Any]) -> str | None:
    says = {key: value for key, value in names.items() if key not in ("type", "title", "description")}
    if set(says) == {"pattern"}:
        return str(says["pattern"])
    if set(says) == {"format"}:
        return _NAME_PATTERNS.get(str(says["format"]))
    if set(says) <= {"minLength", "maxLength"}:
        return f"^.{{{says.get('minLength', 0)},{says.get('maxLength', '')}}}$"
    return None


def _unroll_unique(root: dict[str, Any], part: dict[str, Any]) -> None:
    """Of few values every array of different ones can be listed."""
    if part.get("uniqueItems") is not True or "prefixItems" in part or part.get("type") != "array":
        return
    values = values_of(root, part.get("items"))
    if values is None:
        return
    values = [value for at, value in enumerate(values) if value not in values[:at]]
    part["maxItems"] = min(part.get("maxItems", len(values)), len(values))
    if len(values) <= _MOST_UNROLLED:
        lengths = range(part.get("minItems", 0), part["maxItems"] + 1)
        listed = [list(each) for length in lengths for each in itertools.permutations(values, length)]
        for key in ("items", "minItems", "maxItems", "type"):
            part.pop(key, None)
        part["enum"] = listed


def _draw_in_bounds(part: dict[str, Any]) -> None:
    for key, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(part.get(exclusive), bool) and part.pop(exclusive) and key in part:  # as OpenAPI 3.0 has it
            part[exclusive] = part.pop(key)
    most = _MOST_INTEGER if part.get("type") == "integer" else _MOST_NUMBER
    for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        bound = part.get(key)
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            continue
        lower = key.lower().endswith("minimum")
        if (bound < -most) if lower else (bound > most):
            del part[key]
            part.setdefault("minimum" if lower else "maximum", -most if lower else most)


def _settle_format(part: dict[str, Any]) -> None:
    name = part.get("format")
    if name is None or name in _FORMATS:
        return
    del part["format"]
    if not isinstance(name, str) or "pattern" in part:
        return
    if name in _PATTERNS:
        part["pattern"] = _PATTERNS[name]
    elif name in _LIKE:
        part["format"] = _LIKE[name]


def without_unwritable(pattern: str) -> str:
    """The same pattern, with a class of two such characters for one that no answer spells: that matches nothing, while
    one by itself llguidance would leave out."""

    def spelt(found: re.Match[str]) -> str:
        piece = found[0]
        only = _PIECE.fullmatch(piece[1:-1]) if len(piece) > 2 and piece.startswith("[") else found
        if only is None:
            return piece  # of several characters the others are left
        number = next(filter(None, only.groups()), None)
        character = chr(int(number, 16)) if number else {r"\a": "\a", r"\v": "\v"}.get(only[0], only[0])
        return r"[\x00\x01]" if _UNWRITABLE.fullmatch(character) else piece

    return _PIECE.sub(spelt, pattern)


def _refuse_endless(part: dict[str, Any]) -> None:
    properties, required = part.get("properties"), part.get("required")
    if not isinstance(properties, dict):
        return
    optional = len(set(properties) - set(map(str, required if isinstance(required, list) else ())))
    if optional > MOST_OPTIONAL_PROPERTIES:
        raise RequestError(
            f"the JSON schema cannot be kept to: an object of it has {optional:,} optional properties, and at most "
            f"{MOST_OPTIONAL_PROPERTIES} are supported beside those in 'required'"
        )


def _refuse_unwritable(part: dict[str, Any]) -> None:
    said = [part.get(key) for key in ("const", "enum", "required")]
    said.append(list(part["properties"]) if isinstance(part.get("properties"), dict) else None)
    if any(_UNWRITABLE.search(text) for text in _texts(said)):
        raise RequestError(
            "the JSON schema cannot be kept to: a constant or a property's name of it holds a control character"
        )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(each)
