"""Values that a model writes as bare text, by what a tool's schema says they are."""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TYPES: dict[str, Any] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict,
    "null": type(None),
}  # fmt: skip
_MOST_PARTS = 100
"""Of a schema, that are looked at for one value."""


def of_schema(text: str, schema: Mapping[str, Any], key: str) -> Any:
    """The value of this key of an object of `schema`: the text itself where it may be nothing else, or is nothing else
    that it may be."""
    types = set(_types((schema.get("properties") or {}).get(key), schema))
    if types == {"string"}:
        return text
    value = of_any_type(text)
    return value if not types or any(_is_of(value, each) for each in types) else text


def of_any_type(text: str) -> Any:
    """As JSON, or as Python would write it, or else the text itself."""
    for read in (json.loads, ast.literal_eval):
        try:
            json.dumps(value := read(text.strip()), allow_nan=False)
            return value
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _is_of(value: Any, name: str) -> bool:
    return isinstance(value, _TYPES.get(name, ())) and isinstance(value, bool) <= (name == "boolean")


def _types(part: Any, schema: Mapping[str, Any]) -> Iterator[str]:
    """All that are named for it, wherever in its schema."""
    parts = [part]
    for _ in range(_MOST_PARTS):
        if not parts:
            return
        part = parts.pop()
        if not isinstance(part, dict):
            continue
        named = part.get("type", [])
        yield from [named] if isinstance(named, str) else named
        if "type" not in part:
            yield from map(_name_of, [*part.get("enum", ()), *(part[word] for word in ("const",) if word in part)])
        parts += [each for word in ("anyOf", "oneOf", "allOf") for each in part.get(word, ())]
        if isinstance(where := part.get("$ref"), str) and where.startswith("#/"):
            parts.append(_at(schema, where))


def _name_of(value: Any) -> str:
    return next(name for name in reversed(_TYPES) if _is_of(value, name))


def _at(schema: Any, where: str) -> Any:
    for step in where[2:].split("/"):
        if not isinstance(schema, dict):
            return None
        schema = schema.get(step.replace("~1", "/").replace("~0", "~"))
    return schema
