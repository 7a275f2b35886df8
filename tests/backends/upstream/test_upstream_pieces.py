"""Generation by another server: the many ways in which servers say the same thing, and what they say wrongly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.protocol import Call
from impetus_backends.upstream import answers as answers_module
from impetus_backends.upstream.answers import Answers
from impetus_backends.upstream.failures import UpstreamError

from .asking import TOOL, ended, run, work

if TYPE_CHECKING:
    from impetus_backends.protocol import Answer

    from ..scripted_server import Asked, ScriptedServer

STRICT = {"type": "function", "function": {**TOOL["function"], "strict": True}}  # type: ignore[dict-item]
BIG = 10**400


def told(*deltas: dict[str, Any], reason: str = "stop", **fields: Any) -> tuple[str, Answer]:
    """What is streamed of one answer, and what it comes to."""
    answers = Answers(work(**fields))
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    streamed = "".join(piece.text for chunk in chunks for piece in answers.take(chunk))
    answers.end_of_request()
    (answer,) = answers.whole()
    return streamed, answer


def calling(*parts: dict[str, Any], **fields: Any) -> tuple[Call, ...]:
    return told(*({"tool_calls": [part]} for part in parts), tools=(TOOL,), **fields)[1].calls


def test_content_in_parts_is_text_and_thoughts() -> None:
    streamed, answer = told(
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]},
        {"content": [{"type": "thinking", "thinking": "."}, {"type": "text", "text": "a"}]},
        {"content": [{"type": "output_text", "text": "b"}, {"type": "refusal", "refusal": "c"}]},
        {"content": []},
        {"content": "d"},
    )
    assert (streamed, answer.text, answer.reasoning) == ("abcd", "abcd", "Hm.")
    with pytest.raises(UpstreamError, match="a part that is no text"):
        told({"content": [{"type": "image_url", "image_url": {"url": "x"}}]})


def test_thoughts_that_are_said_under_several_names_are_said_once() -> None:
    _, answer = told({"reasoning": "Hm", "reasoning_content": "Hm", "reasoning_details": [{"text": "Hm"}]})
    assert answer.reasoning == "Hm"


def test_a_refusal_is_text_as_it_is_in_what_is_sent_back() -> None:
    streamed, answer = told({"refusal": "No, "}, {"content": None, "refusal": "thanks."})
    assert (streamed, answer.text) == ("No, thanks.", "No, thanks.")


def test_a_message_that_repeats_a_stream_adds_nothing_to_it() -> None:
    answers = Answers(work())
    said = {"role": "assistant", "content": "ab"}
    chunks: list[dict[str, Any]] = [
        {"choices": [{"delta": {"content": "a"}, "message": {"content": "a"}}]},
        {"choices": [{"delta": {"content": "b"}, "message": said}]},
        {"choices": [{"delta": {}, "message": said, "finish_reason": "stop"}]},
    ]
    assert "".join(piece.text for chunk in chunks for piece in answers.take(chunk)) == "ab"
    assert answers.whole()[0].text == "ab"


@pytest.mark.parametrize(
    ("given", "meant"),
    [("stop", "stop"), ("eos", "stop"), ("end_turn", "stop"), ("what_next", "stop"), ("length", "length"),
     ("max_tokens", "length"), ("MAX_TOKENS", "length"), ("model_length", "length")],
)  # fmt: skip
def test_how_an_answer_ended_is_understood_in_the_words_of_several_makes(given: str, meant: str) -> None:
    assert told({"content": "a"}, reason=given)[1].finish_reason == meant


@pytest.mark.parametrize(
    ("given", "words", "permanent"),
    [("content_filter", "keeps its answer back", True), ("SAFETY", "keeps its answer back", True),
     ("abort", "gave its answer up", False), ("cancelled", "gave its answer up", False),
     ("insufficient_system_resource", "gave its answer up", False)],
)  # fmt: skip
def test_an_answer_that_was_not_to_be_is_an_error(given: str, words: str, permanent: bool) -> None:
    with pytest.raises(UpstreamError, match=words) as caught:
        told({"content": "a"}, reason=given)
    assert caught.value.permanent is permanent


def test_an_answer_that_breaks_off_is_not_whole_where_each_piece_says_that_it_has_no_reason_to_end() -> None:
    answers = Answers(work())
    answers.take({"choices": [{"delta": {"content": "a"}, "finish_reason": ""}]})
    with pytest.raises(UpstreamError, match="before it was whole"):
        answers.end_of_request()


@pytest.mark.parametrize(
    ("parts", "calls"),
    [
        (  # without numbers: what names a tool begins a call
            [{"id": "x", "function": {"name": "weather", "arguments": ""}}, {"function": {"arguments": '{"a'}},
             {"index": None, "function": {"name": None, "arguments": '": 1}'}},
             {"id": "y", "function": {"name": "weather", "arguments": "{}"}}],
            [Call("weather", '{"a": 1}', "x"), Call("weather", "{}", "y")],
        ),
        (  # by their ids, though each part repeats the name
            [{"id": "x", "function": {"name": "weather", "arguments": '{"a'}},
             {"id": "y", "function": {"name": "time", "arguments": '{"b'}},
             {"id": "x", "function": {"name": "weather", "arguments": '": 1}'}},
             {"id": "y", "function": {"arguments": '": 2}'}}],
            [Call("weather", '{"a": 1}', "x"), Call("time", '{"b": 2}', "y")],
        ),
        (  # by one number for all, or none, and without ids: whole calls
            [{"index": 0, "function": {"name": "weather", "arguments": "{}"}},
             {"index": 0, "function": {"name": "weather", "arguments": {"a": 1}}},
             {"function": {"name": "time"}}, {"function": {"name": "place", "arguments": ""}}],
            [Call("weather", "{}", "call_0_0"), Call("weather", '{"a": 1}', "call_0_1"),
             Call("time", "{}", "call_0_2"), Call("place", "{}", "call_0_3")],
        ),
        (  # a number, and the name in each part
            [{"index": 0, "id": "x", "function": {"name": "weather", "arguments": '{"a'}},
             {"index": 0, "function": {"name": "weather", "arguments": '": 1}'}},
             {"index": 0, "id": "x", "function": {"name": "weather", "arguments": " "}}],
            [Call("weather", '{"a": 1} ', "x")],
        ),
    ],
)  # fmt: skip
def test_calls_are_told_apart_however_a_server_numbers_them(parts: list[dict[str, Any]], calls: list[Call]) -> None:
    assert list(calling(*parts)) == calls


def test_a_call_in_its_former_form_is_one() -> None:
    _, answer = told(
        {"function_call": {"name": "weather", "arguments": '{"a"'}}, {"function_call": {"arguments": ": 1}"}},
        reason="function_call", tools=(TOOL,),
    )  # fmt: skip
    assert (answer.calls, answer.finish_reason) == ((Call("weather", '{"a": 1}', "call_0_0"),), "tool_calls")


def test_what_a_strict_tool_is_called_with_is_a_json_object() -> None:
    part = {"index": 0, "id": "x", "function": {"name": "weather", "arguments": '{"a"'}}
    assert calling(part)[0].arguments == '{"a"'  # as the model wrote it
    with pytest.raises(UpstreamError, match="tools: the upstream called weather with arguments that are no JSON"):
        told({"tool_calls": [part]}, tools=(STRICT,))
    with pytest.raises(UpstreamError, match="numbers that JSON does not have"):
        calling({"index": 0, "function": {"name": "weather", "arguments": {"a": float("nan")}}})


@pytest.mark.parametrize(
    ("chunk", "words", "permanent"),
    [
        ({"error": {"message": "no", "code": 404}}, "no", True),
        ({"error": {"message": "no", "code": "422"}}, "no", True),
        ({"error": {"message": "no", "code": "context_length_exceeded"}}, "no", False),
        ({"object": "error", "message": "no", "type": "BadRequestError", "code": 400}, "no", True),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "no"}}, "no", False),
        ({"detail": "no"}, "no", False),
    ],
)
def test_an_error_is_one_in_the_forms_of_several_makes(chunk: dict[str, Any], words: str, permanent: bool) -> None:
    with pytest.raises(UpstreamError, match=f"failed while it answered: {words}$") as caught:
        Answers(work()).take(chunk)
    assert caught.value.permanent is permanent


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_answer_without_the_probabilities_that_were_asked_for_is_none(reason: str) -> None:
    with pytest.raises(UpstreamError, match=r"^logprobs: the upstream sends none") as caught:
        told({"content": "a"}, reason=reason, logprobs=True)
    assert caught.value.permanent
    assert told({"content": ""}, logprobs=True)[1].logprobs == ()  # there is none of no token


def test_numbers_that_nobody_could_go_on_with_are_none() -> None:
    tokens = [{"token": "a", "logprob": each} for each in (-BIG, BIG, -1, -0.5, float("nan"))]
    answers = Answers(work(logprobs=True))
    answers.take({"choices": [{"delta": {"content": "a"}, "logprobs": {"content": tokens}, "finish_reason": "stop"}],
                  "usage": {"prompt_tokens": BIG, "completion_tokens": -BIG}})  # fmt: skip
    answers.end_of_request()
    assert [each.logprob for each in answers.whole()[0].logprobs or ()] == [-9999.0, 0.0, -1.0, -0.5, -9999.0]
    assert (answers.prompt_tokens, answers.completion_tokens) == (0, 1)


def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "_MAX_CHARACTERS", 9)
    for delta in ({"content": "abc"}, {"reasoning": "abc"}, {"tool_calls": [{"function": {"arguments": "abc"}}]}):
        with pytest.raises(UpstreamError, match="longer than 9 characters"):
            told(*[delta] * 4)


@pytest.mark.parametrize(
    ("says", "note"),
    [(None, None), ("m", None), ("/models/M", None), ("m:latest", None), (7, None),
     ("n\x1b", "the upstream says that n\ufffd answered")],
)  # fmt: skip
def test_a_server_that_answers_with_another_model_is_told_of_in_the_result(
    server: ScriptedServer, make_engine: Any, says: Any, note: str | None
) -> None:
    def script(asked: Asked) -> None:
        asked.head()
        asked.event({"model": says, "choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]})

    server.script = script
    result = ended(run(make_engine(), work()))
    assert (result.model, result.note) == ("m", note)
