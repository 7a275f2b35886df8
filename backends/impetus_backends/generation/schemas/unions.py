"""Unions of which one branch alone may hold (`oneOf`), in words that a grammar knows.

An automaton does not count branches. Where no two can hold at once there is nothing to count.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from .parts import TYPES, resolved, values_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .parts import Room

MOST_NESTED, _MOST_BRANCHES, _MOST_TAGS = 4, 256, 8
"""Of unions: how deep they are looked into, how many of their branches, and which properties may tell these apart."""
_SAYS_NOTHING = ("title", "description", "default")


def tell_apart(root: dict[str, Any], part: dict[str, Any], room: Room) -> bool:
    """A `oneOf` no two of whose branches can hold at once is an `anyOf`: they are of different types, or objects that
    name themselves in a property, once each has to. Whether it has become one."""
    if not isinstance(part.get("oneOf"), list) or "anyOf" in part:
        return False
    made = list(part["oneOf"])
    branches = [list(itertools.islice(_leaves(root, each), _MOST_BRANCHES)) for each in made]
    room.take(None, sum(map(len, branches)))
    types = [{each for leaf in branch for each in _types(root, leaf)} for branch in branches]
    if all(_speaks_of_objects(leaf) for branch in branches for leaf in branch):
        types = [{"object"}] * len(branches)  # what is none is of every branch, and so of no such union
    objects = [at for at, each in enumerate(types) if each == {"object"}]
    kinds = [*(each for at, each in enumerate(types) if at not in objects), *([{"object"}] if objects else [])]
    name = _tag(root, part, [branches[at] for at in objects]) if len(objects) > 1 else None
    if not _all_differ(kinds) and not _all_differ([_listed(root, branch) for branch in branches]):
        return False
    if (len(objects) > 1 and name is None) or max(map(len, branches), default=0) == _MOST_BRANCHES:
        return False
    for at, branch in enumerate(branches):
        closed = [_closed(leaf, name) for leaf in branch] if at in objects else branch
        if closed != branch:
            room.take(closed)
            made[at] = {"anyOf": closed}
    part["anyOf"] = made
    del part["oneOf"]
    part.pop("discriminator", None)
    return True


def _leaves(root: dict[str, Any], branch: Any, depth: int = 0) -> Iterator[Any]:
    """A branch, or where it is nothing but a union, the branches of that."""
    branch = resolved(root, branch)
    union = branch.get("anyOf") if isinstance(branch, dict) else None
    if depth < MOST_NESTED and isinstance(union, list) and union and not set(branch) - {"anyOf", *_SAYS_NOTHING}:
        for each in union:
            yield from _leaves(root, each, depth + 1)
    else:
        yield branch if isinstance(branch, dict) else {}


def _types(root: dict[str, Any], leaf: dict[str, Any]) -> set[str]:
    """Of what it allows; a number is of one type, whole or not."""
    named = leaf.get("type", list(TYPES))
    names = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    if (listed := values_of(root, leaf)) is not None:
        names = [name for name in names for value in listed if isinstance(value, TYPES.get(str(name), ()))]
    return {"number" if name == "integer" else str(name) for name in names}


def _speaks_of_objects(leaf: dict[str, Any]) -> bool:
    return "properties" in leaf and leaf.get("type", "object") == "object" and leaf.keys().isdisjoint(("enum", "const"))


def _tag(root: dict[str, Any], part: dict[str, Any], branches: list[list[Any]]) -> str | None:
    """The property by whose values branches differ: the discriminator, or one of the first that list theirs."""
    told = part.get("discriminator")
    known: dict[str, Any] = branches[0][0].get("properties", {})
    names = [name for name, each in known.items() if values_of(root, each) is not None][:_MOST_TAGS]
    if isinstance(told, dict):
        names = [name for name in known if name == told.get("propertyName")]
    for name in names:
        if _all_differ([_listed(root, [leaf.get("properties", {}).get(name) for leaf in each]) for each in branches]):
            return name
    return None


def _listed(root: dict[str, Any], parts: list[Any]) -> set[str] | None:
    """All values that these allow, as JSON; none where not all are listed."""
    lists = [values_of(root, each) for each in parts]
    if None in lists:
        return None
    return {json.dumps(value, sort_keys=True) for each in lists for value in each or ()}


def _all_differ(sets: list[Any]) -> bool:
    """Whether no two of them have anything in common."""
    return None not in sets and sum(map(len, sets)) == len(set().union(*sets))


def _closed(leaf: dict[str, Any], name: str | None) -> dict[str, Any]:
    """The same, of objects alone, which have this property."""
    if name is not None and name not in (needed := leaf.get("required", [])):
        leaf = leaf | {"required": [*needed, name]}
    return leaf | {"type": "object"} if "type" not in leaf else leaf
