"""Results in OpenAI's words, held against the `openai` package's own types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import ValidationError

from impetus_producer.bodies.refusals import refusal_of
from impetus_producer.chat_completions import chat_completion, chat_completion_chunks
from impetus_producer.contract import GenerationRequest, GenerationResult, StreamEvent, StreamField, channel_name
from impetus_producer.enqueueing.parsing import parse_request
from impetus_producer.errors import InvalidRequestError, JobFailedError
from impetus_producer.streams import Delta, StreamText
from tests.producer.stock_worker import generation_of

if TYPE_CHECKING:
    from collections.abc import Iterator

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
WHOLE = GenerationResult.model_validate(
    generation_of("Yes.")
    | {
        "reasoning_content": "Hm.",
        "tool_calls": [CALL, CALL | {"id": "c2"}],
        "finish_reason": "tool_calls",
        "logprobs": [{"token": "Yes.", "logprob": -0.5, "top_logprobs": [{"token": "No.", "logprob": -1.5}]}],
        "more_choices": [{"text": "No.", "finish_reason": "length"}, {"text": "", "finish_reason": "cancelled"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7, "cached_tokens": 2, "reasoning_tokens": 3},
    },
    strict=False,
)


class Handle:
    """A job of which the stream has told a part."""

    job_id = "j"

    def deltas(self, timeout_s: float | None = None) -> Iterator[Delta]:
        text = StreamText("j")
        yield from text.read(
            [entry(StreamEvent.START), said("", 0, "Ye"), said("reasoning", 0, "H"), said("1", 0, "N")]
        )
        yield from text.rest(WHOLE)

    def result(self, timeout_s: float | None = None) -> GenerationResult:
        return WHOLE


def entry(event: StreamEvent, **fields: Any) -> dict[bytes, bytes]:
    made = {
        StreamField.EVENT: event,
        StreamField.RUN: "r",
        **{StreamField(name): each for name, each in fields.items()},
    }
    return {name.encode(): str(value).encode() for name, value in made.items()}


def said(channel: str, at: int, text: str) -> dict[bytes, bytes]:
    return entry(StreamEvent.TEXT, at=at, text=text, **({"channel": channel} if channel else {}))


def test_a_result_is_a_chat_completion() -> None:
    made = ChatCompletion.model_validate(chat_completion(WHOLE, "j", created=7), strict=True)
    assert (made.id, made.created, [choice.index for choice in made.choices]) == ("chatcmpl-j", 7, [0, 1, 2])
    first = made.choices[0]
    assert (first.message.content, first.finish_reason) == ("Yes.", "tool_calls")
    assert [call.id for call in first.message.tool_calls or ()] == ["c1", "c2"]
    assert first.logprobs is not None
    assert first.logprobs.content is not None
    assert (first.logprobs.content[0].bytes, first.logprobs.content[0].top_logprobs[0].token) == (list(b"Yes."), "No.")
    assert [choice.finish_reason for choice in made.choices[1:]] == ["length", "stop"]
    assert made.usage is not None
    assert made.usage.total_tokens == 12
    assert made.usage.completion_tokens_details is not None
    assert made.usage.completion_tokens_details.reasoning_tokens == 3
    assert chat_completion(WHOLE, "j")["choices"][0]["message"]["reasoning_content"] == "Hm."


def test_of_a_token_that_is_half_a_character_no_bytes_are_made_up() -> None:
    halves = [{"token": "\ufffd", "logprob": -0.5}, {"token": "\ufffd", "logprob": -0.5, "bytes": [0xF0, 0x9F]}]
    told = {"logprobs": [*halves, {"token": "é", "logprob": -0.5}]}
    half = GenerationResult.model_validate(generation_of("é") | told, strict=False)
    made = ChatCompletion.model_validate(chat_completion(half, "j"), strict=True)
    assert made.choices[0].logprobs is not None
    assert [each.bytes for each in made.choices[0].logprobs.content or ()] == [None, [0xF0, 0x9F], [*"é".encode()]]


@pytest.mark.parametrize(
    ("choice", "field"),
    [
        ("any", "tool_choice"),
        (5, "tool_choice"),
        ({"function": {"name": "look"}}, "tool_choice.type"),
        ({"type": "function"}, "tool_choice.function"),
        ({"type": "function", "function": {"name": "see"}}, "tool_choice"),
        ({"type": "allowed_tools"}, "tool_choice.allowed_tools"),
    ],
)
def test_what_is_wrong_with_a_choice_is_told_by_the_callers_own_words(choice: Any, field: str) -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    with pytest.raises(InvalidRequestError) as raised:
        parse_request(
            GenerationRequest,
            {"messages": [{"role": "user", "content": "x"}], "tools": tools, "tool_choice": choice},
        )
    assert raised.value.field == field


def test_chunks_say_what_the_completion_says() -> None:
    handle: Any = Handle()
    chunks = [ChatCompletionChunk.model_validate(each, strict=True)
              for each in chat_completion_chunks(handle, model="m", include_usage=True)]  # fmt: skip
    parts = [part for chunk in chunks for part in chunk.choices]
    first = [part for part in parts if part.index == 0]
    assert "".join(part.delta.content or "" for part in first) == "Yes."
    assert "".join((part.delta.model_extra or {}).get("reasoning_content", "") for part in first) == "Hm."
    calls = [call for part in first for call in part.delta.tool_calls or ()]
    assert [(call.index, call.id) for call in calls] == [(0, "c1"), (1, "c2")]
    assert [part.finish_reason for part in parts if part.finish_reason] == ["tool_calls", "length", "stop"]
    assert [part.delta.role for part in parts if part.delta.role] == ["assistant"] * 3
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert {(chunk.id, chunk.model) for chunk in chunks} == {("chatcmpl-j", "m")}


@pytest.mark.parametrize(("choice", "reasoning", "name"), [(0, False, ""), (0, True, "reasoning"), (1, False, "1"),
                                                           (12, True, "12/reasoning")])  # fmt: skip
def test_a_channel_is_read_as_it_is_named(choice: int, reasoning: bool, name: str) -> None:
    assert channel_name(choice, reasoning=reasoning) == name
    (piece,) = StreamText("j").read([entry(StreamEvent.START), said(name, 0, "a")])
    assert piece == (Delta(reasoning="a", choice=choice) if reasoning else Delta("a", choice=choice))


def test_a_piece_that_leaves_a_gap_is_passed_over_and_the_result_supplies_it() -> None:
    text = StreamText("j")
    assert text.read([entry(StreamEvent.START), said("", 0, "Y"), said("", 2, "s.")]) == [Delta("Y")]
    assert text.rest(WHOLE)[1] == Delta("es.")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens: is not max_tokens"),
        ({"tool_choice": "required"}, "tool_choice: there are no tools"),
        ({"continue_final_message": True}, "continue_final_message: the last message is not an assistant's"),
        ({"logit_bias": {"x": 1}}, "logit_bias: 'x' is no token id"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5: Input should be less than or equal to 100"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias: 99999999999999999999: no vocabulary has so many tokens"),
        ({"n": 0}, "n: Input should be greater than 0"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"priority": 1}, "priority"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: this field is required"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content: this field is required"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0: tool_call_id goes with the role tool"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0: a part's text must be a string",
        ),
        ({"messages": [{"role": "user", "content": [7]}]}, "messages.0.content.0: must be an object"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a"}}] * 2}, "tools: two of them have the same name"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "response_format: goes with neither"),
        ({"audio": {"voice": "x"}}, "audio"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(changes: dict[str, Any], sentence: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}]} | changes
    with pytest.raises(InvalidRequestError) as refused:
        parse_request(GenerationRequest, body)
    assert str(refused.value).startswith(sentence)


def test_null_says_as_much_as_nothing_in_every_field() -> None:
    body = dict.fromkeys(GenerationRequest.model_fields) | {"messages": [{"role": "user", "content": "x"}]}
    assert parse_request(GenerationRequest, body) == parse_request(GenerationRequest, {"messages": body["messages"]})
    defaults = {"n": 1, "top_logprobs": 0, "logprobs": False, "tools": [], "logit_bias": {}, "store": False}
    assert parse_request(GenerationRequest, {"messages": body["messages"]} | defaults)
    with pytest.raises(ValidationError):
        GenerationResult.model_validate({"text": "x"})


@pytest.mark.parametrize(
    ("sentence", "code"),
    [
        ("the upstream answers 400: the request exceeds the available context size. try increasing it", True),
        ("the upstream answers 400: Input tokens exceed the configured limit of 272000 tokens.", True),
        ("the upstream answers 400: This model's maximum context length is 8192 tokens.", True),
        ("the upstream answers 400: prompt is too long: 9 tokens > 8 maximum", True),
        ("temperature: the upstream answers 400: must be at most 1", False),
    ],
)
def test_of_a_prompt_that_is_too_long_for_an_upstream_openais_code_is_told(sentence: str, code: bool) -> None:
    refusal = refusal_of(JobFailedError("a", sentence, "InvalidRequestError"))
    assert (refusal.status, refusal.code == "context_length_exceeded") == (400, code)
