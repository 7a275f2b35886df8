"""Schemas that force spaces, and characters of several tokens, whatever kind the model's tokenizer is of."""

from __future__ import annotations

import json
from typing import Any

import pytest

from impetus_backends.errors import RequestError
from impetus_backends.generation.schemas.grammars import Grammars
from impetus_backends.generation.schemas.structured import JsonConstraint
from impetus_backends.generation.texts.detokenize import token_bytes
from tests.generation.tokenizer_kinds import KINDS, fast

pytestmark = pytest.mark.system
pytest.importorskip("mlx_lm")
pytest.importorskip("llguidance")

SPACED = [kind for kind in KINDS if kind not in {"WordPiece", "BPE with ends of words", "unheard of"}]
SCHEMAS: list[Any] = [
    {"const": "a b"},
    {"const": "  a   b    "},
    {"enum": ["x  ", " x", " "]},
    {"type": "object", "properties": {"a b": {"const": " x "}}, "required": ["a b"], "additionalProperties": False},
    {"type": "string", "pattern": "^ {3}é日 {9}$"},
    {"type": "array", "items": {"const": " é"}, "minItems": 2, "maxItems": 2},
]


def wrapped(kind: str) -> Any:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    return TokenizerWrapper(fast(kind))


def answer(tokenizer: Any, constraint: JsonConstraint, seed: int) -> str:
    """What a model that draws at random writes under a constraint."""
    import mlx.core as mx

    mx.random.seed(seed)
    tokens: list[int] = []
    while len(tokens) < 200:
        logits = constraint(mx.array([5, *tokens]), mx.random.normal((1, len(tokenizer))))
        assert constraint.error is None, constraint.error
        token = int(logits.argmax())
        if token in tokenizer.eos_token_ids:
            break
        tokens.append(token)
    text: str = tokenizer.decode(tokens)
    return text


@pytest.fixture(scope="module", params=SPACED)
def spaced(request: pytest.FixtureRequest) -> tuple[Any, Grammars]:
    tokenizer = wrapped(request.param)
    return tokenizer, Grammars(tokenizer, len(tokenizer))


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_answers_hold_the_spaces_that_their_schema_asks_for(spaced: tuple[Any, Grammars], schema: Any) -> None:
    import jsonschema

    tokenizer, grammars = spaced
    for seed in range(3):
        text = answer(tokenizer, grammars.constraint(json.dumps(schema)), seed)
        jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("schema", ['{"const": "ж"}', '{"const": -1}'])
def test_what_no_token_can_spell_ends_the_request_with_one_sentence(schema: str) -> None:
    import mlx.core as mx

    tokenizer = wrapped("Unigram")
    constraint = Grammars(tokenizer, len(tokenizer)).constraint(schema)
    tokens = [5]
    while constraint.error is None and len(tokens) < 5:
        tokens.append(int(constraint(mx.array(tokens), mx.zeros((1, len(tokenizer)))).argmax()))
    assert isinstance(constraint.error, RequestError)
    assert "has no tokens for what would have to come next" in str(constraint.error)


def test_a_panic_of_the_library_ends_one_request_and_not_the_engine() -> None:
    import mlx.core as mx

    panic = type("PanicException", (BaseException,), {})

    class Panics:
        def is_stopped(self) -> bool:
            raise panic("index out of bounds")

    constraint = JsonConstraint(Panics(), 1, lambda logits, allowed: logits)
    constraint._begun = True
    logits = mx.zeros((1, 32))
    assert constraint(mx.array([1]), logits) is logits
    assert "index out of bounds" in str(constraint.error)


@pytest.mark.parametrize("kind", SPACED[1:])
def test_what_a_token_stands_for_is_what_the_tokenizer_makes_of_it_inside_a_text(kind: str) -> None:
    tokenizer = fast(kind)
    pieces = token_bytes(tokenizer)
    assert pieces is not None
    (a,) = [token for token in range(len(tokenizer)) if tokenizer.convert_ids_to_tokens(token) == "a"]
    for token, piece in enumerate(pieces):
        if token in tokenizer.all_special_ids:
            assert piece == b""
        elif not tokenizer.convert_ids_to_tokens(token).startswith("<0x"):
            assert "a" + piece.decode() + "a" == tokenizer.decode([a, token, a])


@pytest.mark.parametrize("kind", ["byte-level BPE", "WordPiece", "BPE with ends of words", "unheard of"])
def test_what_stands_for_different_things_in_different_places_is_not_told(kind: str) -> None:
    assert token_bytes(fast(kind)) is None
