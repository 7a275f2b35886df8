"""Clients that others wrote, unchanged, against real models: their answers are those of the queue."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import closing
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import ollama
import openai
import pytest

from .serving import REAL_EMBEDDINGS, REAL_GENERATION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .serving import Serving

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(find_spec("mlx_lm") is None, reason="MLX is not installed (pip install 'impetus-batch[mlx]')"),
]
TEXTS = ["The cat sat on the mat.", "Grüße aus Łódź", "第二"]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NO_MESSAGES: Any = [{"role": "user", "content": [{}]}]
QUESTION: Any = [{"role": "user", "content": "Name three rivers."}]


@pytest.fixture(scope="module")
def worker_options() -> tuple[str, ...]:
    return (*REAL_EMBEDDINGS, *REAL_GENERATION)


@pytest.fixture(scope="module")
def client(served: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def of_the_queue(served: Serving) -> bytes:
    """The vectors of `TEXTS`."""
    return np.asarray(served.producer.embed(TEXTS).result(60).vectors).tobytes()


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_openais_client_gets_the_queues_vectors_to_the_bit(
    client: openai.OpenAI, of_the_queue: bytes, encoding: Any
) -> None:
    more = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(input=TEXTS, model="bge", **more)
    rows: Any = [each.embedding for each in answer.data]
    if encoding == "base64":
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    assert np.asarray(rows, dtype=np.float32).tobytes() == of_the_queue
    assert answer.model == "bge"
    assert answer.usage.prompt_tokens > len(TEXTS)


def test_ollamas_client_gets_the_queues_vectors_to_the_bit(served: Serving, of_the_queue: bytes) -> None:
    with closing(ollama.Client(served.url)) as client:
        answer = client.embed("bge", TEXTS)
        assert np.asarray(answer.embeddings, dtype=np.float32).tobytes() == of_the_queue
        old = client.embeddings("bge", TEXTS[0])
        assert np.asarray(old.embedding, dtype=np.float32).tobytes() == of_the_queue[: len(of_the_queue) // 3]
        with pytest.raises(ollama.ResponseError, match="there is no model 'llama3' here") as caught:
            client.embed("llama3", TEXTS)
        assert caught.value.status_code == 404


def test_a_chat_is_answered_as_the_queue_answers_it_whole_and_streamed(client: openai.OpenAI, served: Serving) -> None:
    asked: dict[str, Any] = {"messages": QUESTION, "temperature": 0, "max_tokens": 30}
    expected = served.producer.generate(**asked).result(60)
    whole = client.chat.completions.create(model="tiny-says", **asked)
    assert whole.choices[0].message.content == expected.text
    assert whole.usage is not None
    assert whole.usage.completion_tokens == expected.usage.completion_tokens
    chunks = list(
        client.chat.completions.create(model="tiny-says", stream=True, stream_options={"include_usage": True}, **asked)
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == expected.text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == expected.finish_reason
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == expected.usage.completion_tokens


def test_a_tool_is_called_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny-says",
        "messages": QUESTION,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "max_tokens": 200,
    }
    (call,) = client.chat.completions.create(**asked).choices[0].message.tool_calls or [None]
    assert call is not None
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    calls = [
        call
        for chunk in client.chat.completions.create(stream=True, **asked)
        for call in chunk.choices[0].delta.tool_calls or ()
    ]
    assert [(call.function and call.function.name, call.index) for call in calls] == [("weather", 0)]


def test_openais_asynchronous_client_has_many_answers_at_once(served: Serving, of_the_queue: bytes) -> None:
    async def ask() -> tuple[list[list[float]], list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:

            async def embedded(text: str) -> list[float]:
                return (await client.embeddings.create(input=text, model="bge")).data[0].embedding

            async def told() -> str:
                stream = await client.chat.completions.create(
                    model="tiny-says", messages=QUESTION, temperature=0, max_tokens=20, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            rows = await asyncio.gather(*map(embedded, TEXTS))
            return list(rows), list(await asyncio.gather(*(told() for _ in range(8))))

    rows, texts = asyncio.run(ask())
    # In a batch of other texts the last bits may be others.
    assert np.allclose(rows, np.frombuffer(of_the_queue, np.float32).reshape(len(TEXTS), -1), atol=1e-5)
    assert len(set(texts)) == 1
    assert texts[0]


def test_a_text_is_gone_on_with_whole_and_streamed(client: openai.OpenAI, served: Serving) -> None:
    asked: dict[str, Any] = {"prompt": "The river", "temperature": 0, "max_tokens": 12}
    expected = served.producer.generate(**asked).result(60)
    whole = client.completions.create(model="tiny-says", logprobs=2, **asked)
    assert whole.choices[0].text == expected.text
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or ()) == expected.text
    chunks = list(client.completions.create(model="tiny-says", stream=True, **asked))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
    assert chunks[-1].choices[0].finish_reason == expected.finish_reason


def test_several_texts_are_gone_on_with_in_one_request_whole_and_streamed(
    client: openai.OpenAI, served: Serving
) -> None:
    prompts = ["The river", "A mountain", "The river"]
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "n": 2, "seed": 1}
    single = [served.producer.generate(prompt, **asked).result(60) for prompt in prompts]
    texts = [choice.text for result in single for choice in result.choices]
    whole = client.completions.create(model="tiny-says", prompt=prompts, **asked)
    assert [(choice.index, choice.text) for choice in whole.choices] == list(enumerate(texts))
    used = [sum(getattr(each.usage, name) for each in single) for name in ("prompt_tokens", "completion_tokens")]
    assert whole.usage is not None
    assert [whole.usage.prompt_tokens, whole.usage.completion_tokens] == used
    options: Any = {"include_usage": True}
    *chunks, last = client.completions.create(
        model="tiny-says", prompt=prompts, stream=True, stream_options=options, **asked
    )
    streamed, ends = [""] * 6, [0] * 6
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        streamed[choice.index] += choice.text
        ends[choice.index] += choice.finish_reason is not None
    assert (streamed, ends) == (texts, [1] * 6)
    assert last.choices == []
    assert last.usage == whole.usage
    assert {chunk.usage for chunk in chunks} == {None}


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt.1"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"logprobs": 100}, "logprobs"),
        ({"prompt": ["a", "b"], "extra_headers": {"Prefer": "respond-async"}}, "prompt"),
        ({"prompt": ["a", "b"], "extra_headers": {"X-Job-Id": "both"}}, "X-Job-Id"),
    ],
)
def test_what_cannot_be_of_a_completion_is_refused_by_name(
    client: openai.OpenAI, wrong: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "tiny-says", "prompt": "a", **wrong})
    assert caught.value.param == param


def test_each_answer_has_a_name_of_its_own_for_who_asks_about_it(client: openai.OpenAI) -> None:
    names = [client.models.list()._request_id for _ in range(2)]
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="", input=[])
    names.append(refused.value.request_id)
    assert all(name is not None and name.startswith("req_") for name in names)
    assert len(set(names)) == 3


def test_the_models_are_listed_and_others_are_refused_by_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["bge", "tiny-says"]
    assert client.models.retrieve("bge").id == "bge"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-5' here; there is tiny-says") as caught:
        client.chat.completions.create(model="gpt-5", messages=QUESTION)
    assert caught.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


@pytest.mark.parametrize(
    ("wrong", "code", "param"),
    [
        ({"messages": [{"role": "user", "content": "river " * 9000}]}, "context_length_exceeded", None),
        ({"max_tokens": 5000}, "context_length_exceeded", None),
        ({"model": "gpt-5"}, "model_not_found", "model"),
        ({"extra_body": {"colour": "red"}}, "unknown_parameter", "colour"),
        ({"extra_body": {"cancel_if_abandoned": True}}, "unknown_parameter", "cancel_if_abandoned"),
        ({"web_search_options": {}}, "unsupported_parameter", "web_search_options"),
        ({"service_tier": "flex"}, "unsupported_value", "service_tier"),
        ({"temperature": "0.5"}, "invalid_type", "temperature"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"messages": [{"content": "a"}]}, "missing_required_parameter", "messages.0.role"),
    ],
)
def test_what_is_wrong_has_openais_code(
    client: openai.OpenAI, wrong: dict[str, Any], code: str, param: str | None
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**{"model": "tiny-says", "messages": QUESTION, **wrong})
    assert (caught.value.code, caught.value.param) == (code, param)


def test_what_is_wrong_is_told_by_its_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(input=[[1, 2, 3]], model="bge", encoding_format="float")
    assert caught.value.param == "input"
    assert "token ids are not read here" in str(caught.value)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny-says", messages=NO_MESSAGES)
    assert caught.value.param == "messages.0.content.0.type"
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(input="x", model="bge", dimensions=10_000, encoding_format="float")
    assert caught.value.param == "dimensions"
