"""Answers that keep to a JSON schema, with real models and mlx-lm's own batch generator."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from impetus_backends.errors import RequestError
from impetus_backends.generation.models.loader import load
from impetus_backends.generation.schemas.grammar_trial import CPU_LIMIT_S
from impetus_backends.generation.schemas.grammars import Grammars
from tests.paths import DATA

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.generation.models.loader import LoadedModel
    from impetus_backends.generation.schemas.structured import JsonConstraint

pytestmark = pytest.mark.system

SAYS = DATA / "models" / "tiny-says"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["grün", "日本", "🙂"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "boolean"}, "c": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["v", "c"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: dict[str, Any] = {
    "object": PERSON,
    "enum": {"enum": ["red", "grün", 3, None, True, {"a": [1]}]},
    "array": {
        "type": "array",
        "items": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
        "minItems": 2,
        "maxItems": 4,
    },
    "number": {"type": "number", "minimum": -2.5, "maximum": 10},
    "string": {"type": "string", "minLength": 3, "maxLength": 8},
    "pattern": {"type": "string", "pattern": "^[A-ZÄÖÜ]{2}-[0-9]{1,4}$"},
    "date": {"type": "string", "format": "date"},
    "tree": TREE,
    "any": {"anyOf": [{"type": "null"}, PERSON, {"type": "array", "items": {"type": "null"}}]},
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1, "maxProperties": 3},
    "free": {"type": "object"},
}


@pytest.fixture(scope="module")
def grammars(loaded: LoadedModel) -> Grammars:
    return Grammars(loaded.tokenizer, loaded.model.args.vocab_size)


def decode(
    loaded: LoadedModel,
    constraints: Sequence[JsonConstraint | None],
    *,
    prompts: Sequence[str] = (),
    max_tokens: int = 120,
    temperature: float = 1.0,
) -> list[tuple[str, str]]:
    """(text, finish reason) of each row, all decoded in one batch by mlx-lm."""
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.sample_utils import make_sampler

    ends = loaded.tokenizer.eos_token_ids
    generator = BatchGenerator(
        loaded.model, stop_tokens=[[token] for token in ends], sampler=make_sampler(temperature)
    )  # fmt: skip
    texts = prompts or ["Hello, " * (row + 1) for row in range(len(constraints))]
    try:
        uids = generator.insert(
            [loaded.tokenizer.encode(text) for text in texts],
            [max_tokens] * len(texts),
            logits_processors=[[constraint] if constraint else [] for constraint in constraints],
        )
        tokens: dict[int, list[int]] = {uid: [] for uid in uids}
        reasons: dict[int, str] = {}
        while len(reasons) < len(uids):
            for response in generator.next()[1]:
                if response.token not in ends:
                    tokens[response.uid].append(response.token)
                if response.finish_reason:
                    reasons[response.uid] = response.finish_reason
    finally:
        generator.close()
    return [(loaded.tokenizer.decode(tokens[uid]), reasons[uid]) for uid in uids]


def test_random_weights_yield_json_that_validates_or_the_beginning_of_it(
    loaded: LoadedModel, grammars: Grammars
) -> None:
    import mlx.core as mx

    mx.random.seed(7)
    names = [name for name in SCHEMAS for _ in range(3)]
    constraints = [grammars.constraint(json.dumps(SCHEMAS[name])) for name in names]
    ended: set[str] = set()
    for name, constraint, (text, reason) in zip(names, constraints, decode(loaded, constraints), strict=True):
        assert constraint.error is None
        if reason == "stop":
            ended.add(name)
            jsonschema.validate(json.loads(text), SCHEMAS[name], jsonschema.Draft202012Validator)
        else:
            assert reason == "length"
            with pytest.raises(json.JSONDecodeError):
                json.loads(text)
    # Of a model that draws at random, trees and the names of free properties need not end.
    assert ended >= set(SCHEMAS) - {"free", "map", "tree"}


def test_a_trained_model_answers_in_json_and_stops_by_itself(loaded: LoadedModel) -> None:
    model = load(SAYS)
    grammars = Grammars(model.tokenizer, model.model.args.vocab_size)
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "maximum": 99}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    (text, reason), (again, _) = decode(
        model, [grammars.constraint(json.dumps(schema)) for _ in range(2)], prompts=["Q: Which?\nA:"] * 2, temperature=0
    )
    assert reason == "stop"
    assert text == again
    answer = json.loads(text)
    assert list(answer) == ["colour", "count"]
    jsonschema.validate(answer, schema)


def test_rows_with_different_schemas_disturb_neither_each_other_nor_a_free_one(
    loaded: LoadedModel, grammars: Grammars
) -> None:
    prompts = ["One", "Two of them, and more", "Three"]
    schemas = [PERSON, None, TREE]

    def constraint(schema: Any) -> JsonConstraint | None:
        return grammars.constraint(json.dumps(schema)) if schema else None

    alone = [
        decode(loaded, [constraint(schema)], prompts=[prompt], temperature=0, max_tokens=48)[0]
        for prompt, schema in zip(prompts, schemas, strict=True)
    ]
    constraints = [constraint(schema) for schema in schemas]
    assert decode(loaded, constraints, prompts=prompts, temperature=0, max_tokens=48) == alone


def test_wherever_it_is_cut_an_answer_is_the_beginning_of_json(loaded: LoadedModel, grammars: Grammars) -> None:
    def of(tokens: int) -> tuple[str, str]:
        return decode(loaded, [grammars.constraint(json.dumps(PERSON))], temperature=0, max_tokens=tokens)[0]

    whole, reason = of(120)
    assert reason == "stop"
    for tokens in (1, 5, 9):
        text, reason = of(tokens)
        assert reason == "length"
        assert whole.startswith(text.rstrip("\ufffd"))


@pytest.mark.parametrize("changes", [{"min_tokens": 50}, {"ignore_eos": True}], ids=str)
@pytest.mark.parametrize("schema", ['{"type": "boolean"}', '{"enum": ["a", "b"]}', '{"type": "object"}'])
def test_an_answer_that_must_not_end_yet_ends_where_its_schema_allows_nothing_more(
    make_engine: Any, work: Any, drive: Any, schema: str, changes: dict[str, Any]
) -> None:
    ended = drive(make_engine(), work(1, schema=schema, max_tokens=60, **changes))[1]
    assert ended.finish_reason == "stop"
    jsonschema.validate(json.loads(ended.text), json.loads(schema))


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ('{"type": "strin"}', "Invalid type: strin"),
        ("[]", "must be an object"),
        ("{", "Expecting property name"),
        ('{"type": "array", "contains": {"type": "null"}}', "contains"),
        ('{"type": "string", "pattern": "(?=a)b"}', "look-ahead"),
        ('{"type": "object", "patternProperties": {"^a": {}, "^ab": {"type": "null"}}}', "are not disjoint"),
        ('{"enum": []}', "Unsatisfiable"),
        ('{"$ref": "#"}', "no JSON that satisfies"),
        ('{"$ref": "https://example.com/schema"}', "example.com"),
        ('{"oneOf": [{"type": "string"}, {"maxLength": 3}]}', "oneOf constraints are not supported$"),
        ('{"type": "object", "minProperties": 3}', "minProperties is supported up to"),
    ],
)
def test_a_schema_that_cannot_be_kept_to_is_refused_with_one_sentence(
    grammars: Grammars, schema: str, why: str
) -> None:
    for _ in range(2):
        with pytest.raises(RequestError, match=why) as refusal:
            grammars.constraint(schema)
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"type": "string", "pattern": f".*{letter}.*"} for letter in "abcdefghijklmnopqrstuvwxyz"]},
        {"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]},
    ],
    ids=["26 patterns at once", "multiples of two primes"],
)
def test_a_hostile_schema_takes_its_moment_and_no_more(grammars: Grammars, schema: Any) -> None:
    started = time.process_time()
    with pytest.raises(RequestError, match="too intricate"):
        grammars.constraint(json.dumps(schema))
    # Of this process; the trial's own is killed at CPU_LIMIT_S, which is what "too intricate" tells.
    assert time.process_time() - started < 3 * CPU_LIMIT_S


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^((a|b|c|d){1,100}x){1,100}$"},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000},
        {"type": "string", "maxLength": 1_000_000_000},
        {"enum": [f"value {number}" for number in range(5000)]},
    ],
    ids=["nested repetition", "a million items", "a billion characters", "5,000 values"],
)
def test_a_large_schema_decodes_in_steps_of_milliseconds(loaded: LoadedModel, grammars: Grammars, schema: Any) -> None:
    constraint = grammars.constraint(json.dumps(schema))
    started = time.process_time()
    decode(loaded, [constraint], max_tokens=24)
    assert constraint.error is None
    assert time.process_time() - started < 2


def test_equal_schemas_are_prepared_once_and_their_requests_share_no_state(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx

    schema = json.dumps({"const": "a schema of its own"})
    first = grammars.constraint(schema)
    monkeypatch.setattr("impetus_backends.generation.schemas.grammars.subprocess", None)
    second = grammars.constraint(schema)
    logits = mx.zeros((1, 448))
    opening = first(mx.array([5]), logits)
    quote = int(opening.argmax())
    after = first(mx.array([5, quote]), logits)
    assert not mx.array_equal(after, opening)
    assert mx.array_equal(second(mx.array([5]), logits), opening)


def test_options_that_a_schema_brings_along_are_not_obeyed(loaded: LoadedModel, grammars: Grammars) -> None:
    schema = {"type": "array", "items": {"type": "integer", "maximum": 9, "minimum": 0}, "minItems": 2, "maxItems": 2}
    own = schema | {"x-guidance": {"item_separator": ";", "lenient": True}}
    ((text, _),) = decode(loaded, [grammars.constraint(json.dumps(own))])
    assert len(json.loads(text)) == 2
    with pytest.raises(RequestError, match="contains"):
        grammars.constraint(json.dumps(own | {"contains": {"const": 1}}))


def test_a_property_cannot_be_spelt_so_as_to_pass_for_another(grammars: Grammars, loaded: LoadedModel) -> None:
    import mlx.core as mx
    import numpy as np

    constraint = grammars.constraint('{"type": "object", "properties": {"a": {"type": "integer"}}}')
    context = [5]
    for piece in ("{", '"', "\\"):
        constraint(mx.array(context), mx.zeros((1, 448)))
        context.append(loaded.tokenizer.convert_tokens_to_ids(piece))
    allowed = np.array(constraint(mx.array(context), mx.zeros((1, 448))))[0] == 0
    assert constraint.error is None
    assert not allowed[loaded.tokenizer.convert_tokens_to_ids("u")]
    assert allowed[loaded.tokenizer.convert_tokens_to_ids("n")]


def test_logits_wider_than_the_vocabulary_are_forbidden_and_keep_their_type(loaded: LoadedModel) -> None:
    import mlx.core as mx

    for size, width in ((448, 500), (500, 500), (448, 430)):
        constraint = Grammars(loaded.tokenizer, size).constraint('{"const": 1}')
        masked = constraint(mx.array([5]), mx.zeros((1, width), dtype=mx.bfloat16))
        assert constraint.error is None
        assert masked.shape == (1, width)
        assert masked.dtype == mx.bfloat16
        assert int((masked == 0).sum()) == 1
        assert int(masked.argmax()) == loaded.tokenizer.convert_tokens_to_ids("1")


def test_a_token_that_the_schema_forbids_leaves_its_reason_and_lets_the_row_go_on(grammars: Grammars) -> None:
    import mlx.core as mx

    constraint = grammars.constraint('{"const": 1}')
    logits = mx.zeros((1, 448))
    constraint(mx.array([5]), logits)
    for context in ([5, 7], [5, 7, 8]):
        assert mx.array_equal(constraint(mx.array(context), logits), logits)
        assert isinstance(constraint.error, RequestError)
    assert "could not be kept to the JSON schema" in str(constraint.error)


def test_a_tokenizer_that_cannot_be_read_is_the_requests_error() -> None:
    class Foreign:
        eos_token_ids = (0,)

        def __len__(self) -> int:
            return 10

    with pytest.raises(RequestError, match="does not read its tokenizer"):
        Grammars(Foreign(), 10).constraint('{"type": "object"}')
