"""Unions of which one branch alone may hold, and what tools write for what there never is."""

from __future__ import annotations

import itertools
import json
import random
import re
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from impetus_backends.errors import RequestError
from impetus_backends.generation.schemas.json_schemas import keepable
from impetus_backends.generation.schemas.parts import subschemas

from .test_json_schemas import answers, grammars

if TYPE_CHECKING:
    from impetus_backends.generation.models.loader import LoadedModel
    from impetus_backends.generation.schemas.grammars import Grammars

__all__ = ["grammars"]
pytestmark = pytest.mark.system
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def refers_to(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


CAT, DOG = closed(kind={"const": "cat"}, lives=DIGIT), closed(kind={"enum": ["dog", "wolf"]}, age=DIGIT)
PETS = {"cat": CAT, "dog": DOG, "bird": closed(kind={"const": "bird"}), "number": DIGIT}
UNIONS: dict[str, Any] = {
    "objects that name themselves, as pydantic-ai has them": {
        "oneOf": [refers_to("cat"), refers_to("dog"), refers_to("bird")]
    },
    "other types": {"oneOf": [refers_to("cat"), refers_to("number"), {"type": "null"}]},
    "other values": {"oneOf": [{"enum": ["a", "b"]}, {"const": "c"}]},
    "a union in a union, as pydantic nests them": {
        "discriminator": {"propertyName": "kind"},
        "oneOf": [
            {"discriminator": {"propertyName": "kind"}, "oneOf": [refers_to("cat"), refers_to("dog")]},
            refers_to("bird"),
        ],
    },
}


def with_pets(schema: dict[str, Any]) -> dict[str, Any]:
    return schema | {"$defs": PETS}


@pytest.mark.parametrize("union", UNIONS)
def test_a_union_of_branches_that_cannot_hold_at_once_is_kept_to(
    loaded: LoadedModel, grammars: Grammars, union: str
) -> None:
    schema = with_pets(UNIONS[union])
    ended = answers(loaded, grammars, schema)
    assert ended
    for text in ended:
        jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)


def test_a_union_of_which_two_branches_may_hold_is_refused(grammars: Grammars) -> None:
    for branches in (
        [{"type": "integer"}, {"type": "number"}],
        [closed(kind={"const": "cat"}), closed(kind={"type": "string"})],
        [{"required": ["a"]}, {"required": ["b"]}],
        [{"anyOf": [{"properties": {}}, {"type": "string"}]}, {"type": "null"}, {"type": "string"}],
    ):
        with pytest.raises(RequestError, match="oneOf"):
            grammars.constraint(json.dumps({"oneOf": branches}))


VALUES: list[Any] = [None, True, 1, 2.5, "cat", "dog", [], {}, *(
    {name: value for name, value in zip(("kind", "other"), pair, strict=True) if value is not None}
    for pair in itertools.product((None, "cat", "dog", 1), repeat=2)
)]  # fmt: skip


def _branch(dice: random.Random) -> Any:
    kinds: list[Any] = [{"const": "cat"}, {"enum": ["dog", 1]}, {"type": "string"}, {"const": 1}]
    properties = {name: dice.choice(kinds) for name in dice.sample(["kind", "other"], dice.randrange(3))}
    made: dict[str, Any] = {"properties": properties} if properties else {}
    if dice.random() < 0.6:
        made["type"] = dice.choice(["object", "object", "object", "string", "integer", "number", ["object", "null"]])
    if properties and dice.random() < 0.5:
        made["required"] = [*properties]
    if not properties and dice.random() < 0.3:
        made["enum"] = dice.sample([1, "cat", "dog", None, {}], 2)
    return {"anyOf": [made, _branch(dice)]} if dice.random() < 0.2 else made


def test_what_becomes_of_a_union_allows_nothing_that_the_union_forbids() -> None:
    dice = random.Random(7)
    became = 0
    for _ in range(3000):
        schema = {"oneOf": [_branch(dice) for _ in range(dice.randrange(1, 4))]}
        made = keepable(schema)
        if any("oneOf" in part for part in subschemas(made)):
            continue
        became += 1
        before, after = (jsonschema.Draft202012Validator(each) for each in (schema, made))
        for value in VALUES:
            assert before.is_valid(value) or not after.is_valid(value), (schema, made, value)
    assert became > 500


def test_what_a_reference_means_may_grow_by_powers_and_is_given_up() -> None:
    """Of what a union of unions of itself comes to."""
    many = {"anyOf": [refers_to("many")] * 300}
    schema = {"oneOf": [refers_to("many"), {"type": "null"}], "$defs": {"many": many}}
    assert "oneOf" in keepable(schema)


def test_what_there_never_is_is_left_out(loaded: LoadedModel, grammars: Grammars) -> None:
    """zod's `never()`, and its optional fields in former versions."""
    never: dict[str, Any] = {"not": {}}
    for schema, text in (
        (closed(none={"type": "array", "items": never}), '{"none":[]}'),
        (closed(some={"anyOf": [never, {"const": 1}]}), '{"some":1}'),
        (closed(some={"const": 1}) | {"properties": {"some": {"const": 1}, "none": never}}, '{"some":1}'),
    ):
        assert {"".join(each.split()) for each in answers(loaded, grammars, schema)} == {text}
    with pytest.raises(RequestError, match="Unsatisfiable"):
        grammars.constraint(json.dumps(never))


def test_bounds_that_are_excluded_in_openapis_words_are(loaded: LoadedModel, grammars: Grammars) -> None:
    bounds = {"minimum": 0, "exclusiveMinimum": True, "maximum": 3, "exclusiveMaximum": False}
    assert keepable(bounds) == {"exclusiveMinimum": 0, "maximum": 3}
    written = {json.loads(text) for text in answers(loaded, grammars, {"type": "integer", **bounds}, rows=12)}
    assert written == {1, 2, 3}


@pytest.mark.parametrize(
    ("pattern", "taken", "not_taken"),
    [
        (
            r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$",
            ["P1Y2M3DT4H5M6S", "P2W", "PT30M", "P1DT12H", "P1Y3D", "PT1H5S"],
            ["P", "PT", "P1DT", "P1W2D", "1D", "P1S"],
        ),
        (
            r"^(?=.{1,253}\.?$)[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
            r"(?:\.[a-zA-Z0-9](?:[-0-9a-zA-Z]{0,61}[0-9a-zA-Z])?)*\.?$",
            ["localhost", "db-1.eu.example.org", "A.b"],
            ["-a", "a-", "a..b", ".a", "", "a." * 200 + "a"],
        ),
    ],
)
def test_zods_durations_and_hosts_which_look_ahead_are_kept_to(
    loaded: LoadedModel, grammars: Grammars, pattern: str, taken: list[str], not_taken: list[str]
) -> None:
    made = keepable({"type": "string", "pattern": pattern})["pattern"]
    assert all(re.search(pattern, text) and re.search(made, text) for text in taken)
    assert not any(re.search(pattern, text) or re.search(made, text) for text in not_taken)
    assert len("a" * 30 + ("." + "a" * 30) * 7) <= 253
    for text in answers(loaded, grammars, {"type": "string", "pattern": pattern}):
        assert re.search(pattern, json.loads(text))
