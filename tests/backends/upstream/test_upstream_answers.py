"""Generation by another server: what it is asked, and what is made of what it says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.protocol import (
    Call,
    Likely,
    Progress,
    Started,
)
from impetus_backends.upstream.requests import request_of

from .asking import HELLO, TOOL, ended, refused, run, work

if TYPE_CHECKING:
    from ..scripted_server import Asked, ScriptedServer

# -- what is asked ---------------------------------------------------------------------------------------------------


def test_a_plain_request_names_nothing_that_nobody_asked_for() -> None:
    assert "max_tokens" not in request_of(work(), model="m", answers_before=0, max_answer_tokens=None)[1]
    path, body = request_of(work(), model="m", answers_before=0, max_answer_tokens=99)
    assert path == "/chat/completions"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 99,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize("status", [400, 422])
def test_a_length_that_nobody_asked_for_and_that_a_server_refuses_is_left_out(
    server: ScriptedServer, make_engine: Any, status: int
) -> None:
    """So does vLLM where the operator's limit is more than its context leaves."""
    lengths: list[int | None] = []

    def script(asked: Asked) -> None:
        lengths.append(asked.body.get("max_tokens"))
        if lengths[-1] is not None and lengths[-1] > 100:
            asked.answer(status, {"message": "this model's maximum context length is 100 tokens"})
            return
        asked.head()
        asked.delta(content="In Redis.", finish_reason="stop")

    server.script = script
    engine = make_engine(max_answer_tokens=4096)
    assert [each.text for each in ended(run(engine, work(n=2))).answers] == ["In Redis."] * 2
    assert lengths == [4096, None, None]
    assert "maximum context length" in refused(run(engine, work(max_tokens=101))).message
    assert lengths[3:] == [101], "who asks for it is told"


def test_every_field_that_a_request_may_have_is_forwarded() -> None:
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "weather", "arguments": {"city": "Łódź"}}}],
    }
    everything = work(
        messages=(*HELLO, called, {"role": "tool", "content": "wet", "tool_call_id": "c"}),
        max_tokens=7, min_tokens=2, n=3, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.1,
        frequency_penalty=0.2, presence_penalty=0.3, logit_bias={5: -100.0}, stop=("x",), stop_token_ids=(9,),
        ignore_eos=True, seed=10, logprobs=True, top_logprobs=2, schema='{"type": "object"}',
        continue_final_message=True, template_variables={"fast": True}, reasoning_effort="low", tools=(TOOL,),
        tool_choice="=weather", parallel_tool_calls=False, stream=True,
    )  # fmt: skip
    _, body = request_of(everything, model="m", answers_before=1, max_answer_tokens=99)
    assert json.loads(body["messages"][1]["tool_calls"][0]["function"].pop("arguments")) == {"city": "Łódź"}
    assert body.pop("messages")[2] == {"role": "tool", "content": "wet", "tool_call_id": "c"}
    assert body == {
        "model": "m", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 7, "min_tokens": 2,
        "n": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1,
        "repeat_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.3, "logit_bias": {"5": -100.0},
        "stop": ["x"], "stop_token_ids": [9], "ignore_eos": True, "seed": 11, "logprobs": True, "top_logprobs": 2,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object"}},
        },
        "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False, "reasoning_effort": "low", "chat_template_kwargs": {"fast": True},
        "continue_final_message": True, "add_generation_prompt": False,
    }  # fmt: skip


def test_a_prompt_is_continued_and_no_conversation() -> None:
    path, body = request_of(
        work(prompt="Once", logprobs=True, top_logprobs=3), model="m", answers_before=0, max_answer_tokens=9
    )
    assert (path, body["prompt"], body["logprobs"]) == ("/completions", "Once", 3)
    assert "messages" not in body


@pytest.mark.parametrize(
    ("field", "value"), [("special_tokens", "text"), ("deterministic", True), ("max_reasoning_tokens", 5)]
)
def test_what_no_server_can_be_asked_for_is_refused_by_its_name(make_engine: Any, field: str, value: Any) -> None:
    said = refused(run(make_engine(), work(**{field: value})))
    assert said.permanent
    assert said.message.startswith(f"{field}: ")


# -- what comes back -------------------------------------------------------------------------------------------------


def test_an_answer_streams_and_is_whole_with_what_the_server_counted(
    server: ScriptedServer, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(asked: Asked) -> None:
        asked.head()
        asked.wfile.write(b": keepalive\n\n")
        asked.delta(role="assistant", content="")
        asked.delta(reasoning_content="Hm")
        asked.delta(reasoning=", well.")
        asked.delta(content="Grüezi ")
        asked.delta(content="☃\ud83d")
        asked.delta(finish_reason="stop")
        asked.usage(5, 9, prompt_tokens_details={"cached_tokens": 2}, completion_tokens_details={"reasoning_tokens": 4})

    server.script = script
    monkeypatch.setenv("IMPETUS_UPSTREAM_KEY", "s3cret")
    events = run(make_engine(), work(stream=True, temperature=0.0))
    assert events[0] == Started(1)
    pieces = [each for each in events if isinstance(each, Progress)]
    assert [(each.reasoning, each.text) for each in pieces] == [
        ("Hm", ""), (", well.", ""), ("", "Grüezi "), ("", "☃\ufffd"),
    ]  # fmt: skip
    result = ended(events)
    (answer,) = result.answers
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("Grüezi ☃\ufffd", "Hm, well.", "stop")
    assert (result.prompt_tokens, result.completion_tokens, result.cached_tokens, result.reasoning_tokens) == (
        5,
        9,
        2,
        4,
    )
    assert (result.model, result.sampling) == ("m", {"temperature": 0.0})
    assert 0 < result.first_token_s <= result.total_s
    asked = server.next_asked()
    assert (asked.path, asked.headers["Authorization"]) == ("/v1/chat/completions", "Bearer s3cret")


def test_who_does_not_stream_hears_the_end_alone_and_tokens_are_counted_by_pieces_without_usage(
    server: ScriptedServer, make_engine: Any
) -> None:
    def script(asked: Asked) -> None:
        asked.head()
        for text, reason in (("a", None), ("b", None), ("c", "length")):
            asked.event({"choices": [{"index": 0, "text": text, "finish_reason": reason}]})

    server.script = script
    events = run(make_engine(), work(prompt="Once"))
    assert events[:-1] == [Started(1)]
    assert (ended(events).text, ended(events).finish_reason, ended(events).completion_tokens) == ("abc", "length", 3)
    assert server.next_asked().path == "/v1/completions"


def test_a_server_that_knows_no_streams_is_understood_too(server: ScriptedServer, make_engine: Any) -> None:
    message = {"role": "assistant", "content": "Hi", "tool_calls": []}
    server.script = lambda asked: asked.answer(
        200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
    )
    assert (ended(run(make_engine(), work())).text, ended(run(make_engine(), work())).prompt_tokens) == ("Hi", 3)


def test_a_stream_in_chunks_of_http_is_put_together(server: ScriptedServer, make_engine: Any) -> None:
    def script(asked: Asked) -> None:
        asked.protocol_version = "HTTP/1.1"
        asked.send_response(200)
        asked.send_header("Content-Type", "text/event-stream; charset=utf-8")
        asked.send_header("Transfer-Encoding", "chunked")
        asked.end_headers()
        text = (
            'data: {"choices": [{"delta": {"content": "é☃"},\ndata: "finish_reason": "stop"}]}\r\n\r\ndata: [DONE]\n\n'
        )
        whole = text.encode()
        for part in (whole[:37], whole[37:38], whole[38:]):
            asked.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            asked.wfile.flush()
        asked.wfile.write(b"0\r\n\r\n")

    server.script = script
    assert ended(run(make_engine(), work())).text == "é☃"


def test_calls_of_tools_come_in_parts_by_index(server: ScriptedServer, make_engine: Any) -> None:
    def script(asked: Asked) -> None:
        asked.head()
        asked.delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "weather", "arguments": '{"ci'}}])
        asked.delta(tool_calls=[{"index": 0, "function": {"arguments": 'ty": 1}'}}])
        asked.delta(tool_calls=[{"index": 1, "function": {"name": "weather", "arguments": {"city": 2}}}])
        asked.delta(tool_calls=[{"index": 1, "id": "b", "function": {"name": "time", "arguments": ""}}])
        asked.delta(tool_calls=[{"index": 1, "id": "c", "function": {"name": "place"}}], finish_reason="stop")

    server.script = script
    engine = make_engine()
    (answer,) = ended(run(engine, work(tools=(TOOL,)))).answers
    assert answer.finish_reason == "tool_calls"
    assert answer.calls[0] == Call("weather", '{"city": 1}', "a")
    assert [call.name for call in answer.calls] == ["weather", "weather", "place"]
    assert len({call.id for call in answer.calls}) == 3
    (answer,) = ended(run(engine, work(tools=(TOOL,), parallel_tool_calls=False))).answers
    assert len(answer.calls) == 1


@pytest.mark.parametrize("knows_n", [True, False])
def test_two_answers_come_whether_the_server_makes_several_or_one_a_request(
    server: ScriptedServer, make_engine: Any, knows_n: bool
) -> None:
    def script(asked: Asked) -> None:
        asked.head()
        seed = asked.body["seed"]
        indexes = range(asked.body.get("n", 1) if knows_n else 1)
        for piece, reason in (("a", None), ("b", "stop")):
            for index in indexes:
                asked.delta(index, reason, content=f"{piece}{seed + index}")
        asked.usage(4, 2 * len(indexes))

    server.script = script
    events = run(make_engine(), work(n=2, seed=5, stream=True))
    assert [answer.text for answer in ended(events).answers] == ["a5b5", "a6b6"]
    assert (ended(events).prompt_tokens, ended(events).completion_tokens) == (4, 4)
    streamed = {0: "", 1: ""}
    for each in events:
        if isinstance(each, Progress):
            streamed[each.choice] += each.text
    assert streamed == {0: "a5b5", 1: "a6b6"}


def test_probabilities_come_in_both_forms_and_without_infinities(server: ScriptedServer, make_engine: Any) -> None:
    top = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": float("-inf")}]
    chat = {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": top}]}
    old = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": None, "a": -0.5}]}

    def script(asked: Asked) -> None:
        asked.head()
        has = chat if "messages" in asked.body else old
        asked.event({"choices": [{"delta": {"content": "a"}, "logprobs": has, "finish_reason": "stop"}]})

    server.script = script
    for each in (work(logprobs=True, top_logprobs=2), work(prompt="Once", logprobs=True, top_logprobs=2)):
        assert ended(run(make_engine(), each)).answers[0].logprobs == (
            Likely("a", -0.5, (Likely("a", -0.5), Likely("b", -9999.0))),
        )


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"schema": '{"type": "object"}'}, "response_format"),
        ({"tools": (TOOL,), "tool_choice": "required"}, "tool_choice"),
        ({"tools": (TOOL,), "tool_choice": "=weather"}, "tool_choice"),
    ],
)
def test_an_answer_that_is_not_what_was_promised_is_none(
    server: ScriptedServer, make_engine: Any, fields: dict[str, Any], named: str
) -> None:
    def script(asked: Asked) -> None:
        asked.head()
        asked.delta(content="Sure!", finish_reason="stop")

    server.script = script
    said = refused(run(make_engine(), work(**fields)))
    assert named in said.message
    assert not said.permanent
