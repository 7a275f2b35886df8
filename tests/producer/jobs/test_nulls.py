"""Null says the same as nothing, in whatever is asked for and however."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from impetus_producer.bodies.chats import chat_payload
from impetus_producer.bodies.completions import CompletionsBody
from impetus_producer.bodies.embeddings import EmbeddingsBody
from impetus_producer.bodies.reranking import RerankBody
from impetus_producer.contract import EmbeddingRequest, GenerationRequest, RerankRequest
from impetus_producer.enqueueing.parsing import parse_request
from impetus_producer.errors import InvalidRequestError

if TYPE_CHECKING:
    from pydantic import BaseModel

ASKED: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (EmbeddingRequest, {"input": ["a"]}),
    (EmbeddingsBody, {"input": "a"}),
    (RerankRequest, {"query": "a", "documents": ["b"]}),
    (RerankBody, {"query": "a", "documents": ["b"]}),
    (GenerationRequest, {"prompt": "a"}),
]
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(("kind", "fields"), ASKED)
def test_null_in_any_other_field_changes_nothing(kind: type[BaseModel], fields: dict[str, Any]) -> None:
    nulls = dict.fromkeys([*(kind.model_fields.keys() - fields.keys()), "some_other_servers"])
    assert parse_request(kind, fields | nulls) == parse_request(kind, fields)


@pytest.mark.parametrize(("kind", "fields"), ASKED)
def test_what_has_to_be_there_is_not_there_as_null(kind: type[BaseModel], fields: dict[str, Any]) -> None:
    for name in fields:
        with pytest.raises(InvalidRequestError, match=name):
            parse_request(kind, fields | {name: None})


def test_a_field_of_ours_that_a_chat_does_not_have_is_refused_only_where_it_says_something() -> None:
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "prompt": None, "cancel_if_abandoned": None}
    assert chat_payload(chat)[1] == {"messages": chat["messages"]}
    with pytest.raises(InvalidRequestError, match="cancel_if_abandoned: there is no such field"):
        chat_payload(chat | {"cancel_if_abandoned": True})


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_no_limit_may_be_written_as_minus_one(field: str) -> None:
    for none in (-1, -1.0):
        assert parse_request(GenerationRequest, {"prompt": "a", field: none}).most_tokens is None
    for other in (-2, -2.0, 0, True, "-1"):
        with pytest.raises(InvalidRequestError, match=field):
            parse_request(GenerationRequest, {"prompt": "a", field: other})


def numbers(kind: type[BaseModel]) -> dict[str, Any]:
    """The fields of whole numbers, by the schema that others read, each with one that it takes."""
    stated = kind.model_json_schema()["properties"]
    forms = {name: each.get("anyOf", [each]) for name, each in stated.items()}
    alone = {
        name: form.get("const", 1) for name, each in forms.items() for form in each if form.get("type") == "integer"
    }
    of_lists = {name: [form.get("items", {}) for form in each] for name, each in forms.items()}
    lists = {name: [1, 2] for name, each in of_lists.items() if any(form.get("type") == "integer" for form in each)}
    return alone | lists


def pointed(value: Any) -> Any:
    return [*map(float, value)] if isinstance(value, list) else float(value)


@pytest.mark.parametrize(
    ("kind", "fields"), [*ASKED[:4], (GenerationRequest, CHAT), (CompletionsBody, {"prompt": "a"})]
)
def test_any_whole_number_may_be_written_with_a_point_and_no_other(
    kind: type[BaseModel], fields: dict[str, Any]
) -> None:
    assert numbers(kind)
    for name, value in numbers(kind).items():
        more = {"logprobs": True} if name == "top_logprobs" else {}
        asked = fields | more | {name: value}
        assert parse_request(kind, fields | more | {name: pointed(value)}) == parse_request(kind, asked), name
        half = [1.5] if isinstance(value, list) else 1.5
        with pytest.raises(InvalidRequestError, match=name):
            parse_request(kind, fields | more | {name: half})


def test_an_effort_is_heard_by_either_name_and_not_beside_a_prompt() -> None:
    for fields in ({"reasoning_effort": "low"}, {"reasoning": {"effort": "low"}}):
        assert parse_request(GenerationRequest, CHAT | fields).effort == "low"
        with pytest.raises(InvalidRequestError, match="reasoning_effort"):
            parse_request(GenerationRequest, {"prompt": "a", **fields})
    assert parse_request(GenerationRequest, CHAT | {"reasoning": {}}).effort is None
