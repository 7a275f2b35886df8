"""Schemas as pydantic writes them, schemas that could never end, and neighbours who notice nothing of either."""

from __future__ import annotations

import datetime
import decimal
import enum
import ipaddress
import json
import pathlib
import re
import threading
import uuid
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import UUID4, UUID7, Base64Bytes, BaseModel, ConfigDict, Field, IPvAnyAddress, SecretStr, create_model

from impetus_backends.errors import RequestError
from impetus_backends.generation.schemas import grammars as grammars_module
from impetus_backends.generation.schemas.grammar_trial import fault
from impetus_backends.generation.schemas.grammars import Grammars
from impetus_backends.generation.schemas.json_schemas import keepable, repeats_items
from impetus_backends.protocol import Generated, Progress, Rejected

if TYPE_CHECKING:
    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


CLOSED = ConfigDict(extra="forbid")
NAME = Annotated[str, Field(min_length=1, max_length=3)]
DIGIT = Annotated[int, Field(ge=0, le=9)]


class Cat(BaseModel):
    model_config = CLOSED
    kind: Literal["cat"] = "cat"
    lives: DIGIT


class Dog(BaseModel):
    model_config = CLOSED
    kind: Literal["dog"] = "dog"
    tricks: DIGIT


SHORT = Field(json_schema_extra={"pattern": "^[a-z]{1,6}$"})
FIELDS: dict[str, Any] = {
    "uuid4": UUID4,
    "uuid7": UUID7,
    "any uuid": uuid.UUID,
    "set of an enum": set[Colour],
    "set": Annotated[set[Annotated[int, Field(ge=0, le=10_000)]], Field(max_length=2)],
    "optional set": frozenset[Literal["a", "b"]] | None,
    "bytes": Annotated[bytes, SHORT],
    "path": Annotated[pathlib.Path, SHORT],
    "ipv4": ipaddress.IPv4Address,
    "ip": IPvAnyAddress,
    "network": ipaddress.IPv4Network,
    "dict of an enum": dict[Colour, bool],
    "dict of dates": Annotated[dict[datetime.date, bool], Field(max_length=1)],
    "dict of uuids": Annotated[dict[uuid.UUID, bool], Field(max_length=1)],
    "dict of short names": Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=3)], bool], Field(max_length=2)
    ],
    "int64": Annotated[int, Field(ge=-(2**63), le=2**63 - 1)],
    "uint64": Annotated[int, Field(ge=0, lt=2**64)],
    "vast": Annotated[float, Field(gt=-1e300, lt=1e300)],
    "date": datetime.date,
    "money": Annotated[decimal.Decimal, Field(ge=0, max_digits=5, decimal_places=2)],
    "secret": Annotated[SecretStr, SHORT],
    "told apart": Annotated[Cat | Dog, Field(discriminator="kind")],
}


UNIQUE = {"uniqueItems": True}
ENDLESS = {"$ref": "#/$defs/s"}


@pytest.fixture(scope="module")
def grammars(loaded: LoadedModel) -> Grammars:
    return Grammars(loaded.tokenizer, loaded.vocabulary_size)


def answers(loaded: LoadedModel, grammars: Grammars, schema: Any, rows: int = 4) -> list[str]:
    """What a model of random weights writes until it ends."""
    import mlx.core as mx

    ends, texts = loaded.tokenizer.eos_token_ids, []
    for seed in range(rows):
        mx.random.seed(seed)
        constraint = grammars.constraint(json.dumps(schema))
        tokens: list[int] = []
        for _ in range(300):
            logits = constraint(mx.array([5, *tokens]), mx.random.normal((1, loaded.vocabulary_size)))
            assert constraint.error is None, constraint.error
            token = int(logits.argmax())
            if token in ends:
                texts.append(loaded.tokenizer.decode(tokens))
                break
            tokens.append(token)
    return texts


@pytest.mark.parametrize("field", FIELDS)
def test_ordinary_fields_of_pydantic_get_answers_that_pydantic_takes(
    loaded: LoadedModel, grammars: Grammars, field: str
) -> None:
    model = create_model("Answer", field=(FIELDS[field], ...), __config__=CLOSED)
    schema = model.model_json_schema()
    ended = answers(loaded, grammars, schema)
    assert ended
    for text in ended:
        jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)
        model.model_validate_json(text)


def test_base64_is_an_annotation_as_every_format_that_is_not_known(grammars: Grammars) -> None:
    grammars.constraint(json.dumps(create_model("Answer", field=(Base64Bytes, ...)).model_json_schema()))
    grammars.constraint('{"type": "string", "format": "shoe-size"}')


@pytest.mark.parametrize(
    ("rest", "taken"),
    [
        (r"\d*\.?\d*$", ["0", "-12", "3.25", "00.5"]),
        (r"\d*\.?\d{0,2}0*$", ["7", "-7.25"]),
        (r"(?:\d{0,3}|(?=[\d.]{1,6}0*$)\d{0,3}\.\d{0,2}0*$)", ["123", "123.45", "-0.5"]),
        (r"(?:\d{0,0}|(?=[\d.]{1,3}0*$)\d{0,0}\.\d{0,2}0*$)", ["0", "0.25"]),
        (r"(?:\d{0,4}|(?=[\d.]{1,5}0*$)\d*\.\d*0*$)", ["1234", "-1.234", "12.34"]),
    ],
)
def test_decimals_of_later_pydantics_which_look_ahead_are_kept_to(
    loaded: LoadedModel, grammars: Grammars, rest: str, taken: list[str]
) -> None:
    pattern = r"^(?!^[-+.]*$)[+-]?0*" + rest
    made = keepable({"type": "string", "pattern": pattern})["pattern"]
    for text in taken:
        assert re.search(pattern, text)
        assert re.search(made, text)
    for text in ("", "-", ".", "-.", "1.2.3", "a", "12345.678901"):
        assert re.search(pattern, text) or not re.search(made, text)
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    for text in answers(loaded, grammars, schema):
        assert re.search(pattern, json.loads(text)["a"])


def test_zods_addresses_which_look_ahead_are_kept_to(loaded: LoadedModel, grammars: Grammars) -> None:
    pattern = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
    part = {"type": "string", "format": "email", "pattern": pattern}
    made = keepable(dict(part))["pattern"]
    for text in ("a@b.de", "first.last+tag@mail.example.org"):
        assert re.search(made, text)
        assert re.search(pattern, text)
    for text in (".a@b.de", "a..b@c.de", "a.@b.de", "a@b", "@b.de"):
        assert not re.search(made, text)
    schema = {"type": "object", "properties": {"to": part}, "required": ["to"], "additionalProperties": False}
    for text in answers(loaded, grammars, schema):
        assert re.search(pattern, json.loads(text)["to"])


def test_what_is_no_schema_is_not_changed() -> None:
    schema = {
        "properties": {
            "format": {"const": {"format": "x", "minimum": -1e300, "uniqueItems": True}},
            "propertyNames": {},
        },
        "default": {"format": "x"},
    }
    assert keepable(schema) == schema


@pytest.mark.parametrize(
    ("schema", "value", "repeats"),
    [
        ({"type": "array", "uniqueItems": True}, [1, 2], False),
        ({"type": "array", "uniqueItems": True}, [{"a": 1, "b": 2}, {"b": 2, "a": 1}], True),
        ({"items": {"uniqueItems": True}}, [[1], [2, 2]], True),
        ({"properties": {"a": {"$ref": "#/$defs/s"}}, "$defs": {"s": {"uniqueItems": True}}}, {"a": [3, 3]}, True),
        ({"additionalProperties": {"prefixItems": [{"uniqueItems": True}]}}, {"x": [["a", "a"]]}, True),
        ({"anyOf": [{"type": "array", "uniqueItems": True}, {"type": "null"}]}, [1, 1], True),
        ({"anyOf": [{"type": "array", "uniqueItems": True}, {"type": "array"}]}, [1, 1], False),
        ({"allOf": [{"uniqueItems": True}]}, [1, 1], True),
        ({"const": {"uniqueItems": True}}, [1, 1], False),
        ({"$ref": "#/$defs/s", "uniqueItems": True, "$defs": {"s": {"type": "array"}}}, [1, 1], True),
        ({"allOf": [ENDLESS], "$defs": {"s": {"allOf": [ENDLESS]}, "u": UNIQUE}}, [1], False),
    ],
)
def test_items_that_repeat_where_they_may_not_are_found(schema: Any, value: Any, repeats: bool) -> None:
    assert repeats_items(schema, value) is repeats


def test_an_answer_that_repeats_an_item_of_a_set_fails_and_says_so(make_engine: Any, work: Any, drive: Any) -> None:
    schema = {"type": "array", "items": {"type": "string", "pattern": "^[a-e]$"}, "minItems": 5, "maxItems": 5}
    plain, unique = json.dumps(schema), json.dumps(schema | {"uniqueItems": True})
    engine = make_engine()
    hot = {"temperature": 1.5, "max_tokens": 60}
    works = [work(at, "x", schema=plain, seed=at, **hot) for at in range(6)]
    works += [work(10 + at, "x", schema=unique, seed=at, **hot) for at in range(6)]
    ended = drive(engine, *works)
    for at in range(6):
        event, of_set = ended[at], ended[10 + at]
        assert isinstance(event, Generated)
        if event.finish_reason == "stop" and len(set(json.loads(event.text))) < 5:
            assert isinstance(of_set, Rejected)
            assert "repeats an item" in of_set.message
        else:
            assert of_set.text == event.text
    assert any(isinstance(event, Rejected) for event in ended.values())


# -- schemas that could never end ------------------------------------------------------------------------------------


def many(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{at}": {"type": "integer"} for at in range(count)}}


@pytest.mark.parametrize(
    "schema",
    [
        many(1000),
        {"type": "array", "items": many(1000)},
        {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/m"}], "$defs": {"m": many(1000)}},
    ],
    ids=["at the top", "in an array", "in a union"],
)  # fmt: skip
def test_a_thousand_optional_properties_are_refused_at_the_door(grammars: Grammars, schema: Any) -> None:
    with pytest.raises(RequestError, match="1,000 optional properties, and at most 400") as refused:
        grammars.constraint(json.dumps(schema))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "schema",
    [{"const": "a\0b"}, {"enum": [1, {"a": ["\x1f"]}]}, {"enum": [{"\x01": 1}]}, {"properties": {"\0": True}},
     {"type": "object", "required": ["\x0b"]}, {"$defs": {"a": {"const": "\0"}}, "$ref": "#/$defs/a"},
     {"const": "a\x7fb"}],
)  # fmt: skip
def test_a_constant_that_no_answer_spells_is_refused(schema: Any) -> None:
    with pytest.raises(RequestError, match="holds a control character"):
        keepable(schema)
    assert keepable({"const": "\b\f\n\r\t\x80"}) == {"const": "\b\f\n\r\t\x80"}


@pytest.mark.parametrize(
    "character",
    [
        "\x01",
        "\x7f",
        r"\x01",
        r"\x{1}",
        r"\u001F",
        r"\u{1f}",
        r"\U00000001",
        r"\v",
        r"\a",
        r"[\x0b]",
        "[\x01]",
        r"[\v]",
    ],
)
def test_a_character_of_a_pattern_that_no_answer_spells_is_not_left_out(
    loaded: LoadedModel, grammars: Grammars, character: str
) -> None:
    with pytest.raises(RequestError, match="no JSON that satisfies it"):
        grammars.constraint(json.dumps({"type": "string", "pattern": f"^a{character}b$"}))
    for pattern in (f"^(a{character}b|cd)$", f"^c{character}?d$", f"^c[d{character.strip('[]')}]$"):
        assert {*answers(loaded, grammars, {"type": "string", "pattern": pattern})} == {'"cd"'}
    named = {"patternProperties": {f"^a{character}b$": True, "^cd$": {"const": 1}}, "additionalProperties": False}
    assert not any('"ab"' in text for text in answers(loaded, grammars, {"type": "object", **named}))


@pytest.mark.parametrize(
    "pattern", [r"^[^\x00-\x1f\x7f]+$", r"^[\x01a]\\x01\t\n[]\v]\[\u0041[\x20-\x7e]$", "^.\x08\xa0$"]
)
def test_a_pattern_without_such_a_character_stays_as_it_is(pattern: str) -> None:
    assert keepable({"pattern": pattern}) == {"pattern": pattern}


def test_a_grammar_that_fails_on_the_way_is_found_out_by_its_trial() -> None:
    from llguidance import LLMatcher

    for schema in (many(1000), {"type": "array", "items": many(1000)}, {"anyOf": [{"type": "null"}, many(1000)]}):
        assert "could not be ended" in fault(LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    for fine in (many(300), {"type": "string"}, {"type": "array", "minItems": 100_000}, {"enum": ["a"] * 3}):
        assert fault(LLMatcher.grammar_from_json_schema(json.dumps(fine))) == ""


def test_many_properties_that_are_required_or_few_enough_are_kept_to(loaded: LoadedModel, grammars: Grammars) -> None:
    grammars.constraint(json.dumps(many(400)))
    grammars.constraint(json.dumps(many(600) | {"required": [f"p{at}" for at in range(600)]}))


# -- beside the engine's thread ---------------------------------------------------------------------------------------


def test_neighbours_go_on_while_schemas_are_tried(
    make_engine: Any, work: Any, loaded: LoadedModel, solo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()
    trials: list[str] = []

    def slow(grammar: str) -> None:
        trials.append(threading.current_thread().name)
        assert may_end.wait(30)

    monkeypatch.setattr(grammars_module, "_try", slow)
    engine = make_engine()
    schemas = [json.dumps({"enum": [number]}) for number in range(20)]
    engine.admit(work(100, "Hello", stream=True))
    for number, schema in enumerate(schemas):
        engine.admit(work(number, "Hello", schema=schema))
        engine.admit(work(200 + number, "Hello", schema=schema))
    heard: list[Any] = []
    while not any(isinstance(event, Generated) for event in heard):
        heard += engine.step()
    assert {event.id for event in heard} == {100}
    assert sum(isinstance(event, Progress) for event in heard) > 5
    assert heard[-1].text == solo("Hello")
    engine.cancel(0)
    may_end.set()
    ended = {event.id: event for event in heard if isinstance(event, Generated)}
    while engine.pending():
        ended |= {event.id: event for event in engine.step() if isinstance(event, Generated)}
    assert ended[0].finish_reason == "cancelled"
    assert [ended[number].text for number in range(1, 20)] == [str(number) for number in range(1, 20)]
    assert len(trials) == 20, "equal schemas are tried once"
    assert threading.current_thread().name not in trials


def test_closing_gives_up_what_is_being_tried(make_engine: Any, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()
    tried: list[threading.Thread] = []

    def slow(grammar: str) -> None:
        tried.append(threading.current_thread())
        assert may_end.wait(30)

    monkeypatch.setattr(grammars_module, "_try", slow)
    engine = make_engine()
    for number in range(12):
        engine.admit(work(number, "Hello", schema=json.dumps({"const": number})))
    assert engine.pending() == 12
    engine.close()
    may_end.set()
    assert engine.pending() == 0
    for thread in tried:
        thread.join(30)
    assert len(tried) <= 2
