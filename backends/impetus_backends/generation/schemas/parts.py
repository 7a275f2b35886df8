"""What a JSON schema consists of: the schemas in it, what its references mean, and how much is said again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_ADDED = 50_000
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas")
_SINGLE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames",
           "unevaluatedProperties", "unevaluatedItems", "additionalItems")  # fmt: skip
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "number": (int, float), "integer": (int,),
    "boolean": (bool,), "null": (type(None),),
}  # fmt: skip


def subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and every schema in it, the inner ones first. What stands under `const`, `enum` and such is none."""
    if not isinstance(schema, dict):
        return
    inner = [each for key in _NAMED if isinstance(schema.get(key), dict) for each in schema[key].values()]
    inner += [each for key in _LISTS if isinstance(schema.get(key), list) for each in schema[key]]
    inner += [schema[key] for key in _SINGLE if key in schema]
    for each in inner:
        yield from subschemas(each)
    yield schema


def resolved(root: dict[str, Any], schema: Any) -> Any:
    """The schema that a reference into the same document means, with what stands beside the reference."""
    for _ in range(32):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not (isinstance(reference, str) and (reference == "#" or reference.startswith("#/"))):
            break
        at: Any = root
        for name in reference.split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            at = at.get(name) if isinstance(at, dict) else None
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        schema = at | beside if isinstance(at, dict) else at
    return schema


def values_of(root: dict[str, Any], schema: Any) -> list[Any] | None:
    """All that a schema allows, where it lists it."""
    schema = resolved(root, schema)
    if not isinstance(schema, dict):
        return None
    if isinstance(schema.get("enum"), list):
        return list(schema["enum"])
    if "const" in schema:
        return [schema["const"]]
    return [False, True] if schema.get("type") == "boolean" else None


class Room:
    """For what is said again, once for each place where it holds: schemas in schemas make that grow by powers."""

    def __init__(self) -> None:
        self._left = _MOST_ADDED

    def take(self, added: Any, times: int = 1) -> None:
        """Raises `RequestError` where there is no more."""
        waiting, values = [added], 0
        while waiting and values * times <= self._left:
            values += 1
            each = waiting.pop()
            waiting += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        self._left -= values * times
        if self._left < 0:
            raise RequestError("the JSON schema is too intricate: what it says of properties, once for each of their "
                               f"names, comes to more than {_MOST_ADDED:,} values")  # fmt: skip
