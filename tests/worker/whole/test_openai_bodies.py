"""Bodies of chat completions as clients of OpenAI send them: each comes to what it says, through a real worker."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from impetus_producer import InvalidRequestError, JobFailedError, Producer
from impetus_producer.bodies.chats import chat_payload
from impetus_producer.bodies.completions import CompletionsBody, completion_payloads
from impetus_producer.chat_completions import chat_completion, chat_completion_chunks
from impetus_producer.contract import GenerationRequest
from impetus_producer.enqueueing.parsing import parse_request
from tests.paths import DATA
from tests.worker.conftest import RunningWorker

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system
CASES = [
    json.loads(line)
    for name in ("openai-bodies.jsonl", "sdk-bodies.jsonl", "client-bodies.jsonl")
    for line in (DATA / name).read_text(encoding="utf-8").splitlines()
]


@pytest.fixture(scope="module")
def producer(redis_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Producer]:
    model = str(DATA / "models" / "tiny-says")
    log = tmp_path_factory.mktemp("worker") / "log"
    worker = RunningWorker(redis_server.url, log, "--roles", "generation", "--generation-model", model)
    try:
        yield Producer(redis_server.url)
    finally:
        worker.stop()


def test_what_python_takes_is_taken_over_http_and_asks_workers_for_nothing_that_they_do_not_know() -> None:
    for case in CASES:
        if case["expect"] == "accept":
            request, payload = chat_payload(case["body"])
            assert payload.keys() <= GenerationRequest.model_fields.keys(), case["why"]
            assert GenerationRequest.model_validate(payload) == request, case["why"]


@pytest.mark.parametrize(
    "fields",
    [{"top_k": -1, "top_p": 0}, {"best_of": 1, "echo": False, "suffix": "", "logprobs": None, "max_tokens": None},
     {"skip_special_tokens": True, "guided_json": None, "cache_prompt": True, "priority": 0, "store": False}],
)  # fmt: skip
def test_a_text_that_goes_on_is_asked_for_as_chats_are(fields: dict[str, Any]) -> None:
    body = {"prompt": "Where", **fields}
    (payload,) = completion_payloads(parse_request(CompletionsBody, body), body)
    request = GenerationRequest.model_validate(payload)
    assert (request.prompt, request.max_tokens, request.top_k or 0) == ("Where", 16, 0)


@pytest.mark.parametrize("case", CASES, ids=[case["why"][:60] for case in CASES])
def test_a_body_comes_to_what_it_says(producer: Producer, case: dict[str, Any]) -> None:
    if case["expect"] == "refuse":
        field = case["why"].partition(":")[0].rpartition(".")[2]
        with pytest.raises((InvalidRequestError, JobFailedError), match=field if not field.isdecimal() else "content"):
            producer.generate(**case["body"]).result(timeout_s=60)
        return
    body = case["body"]
    handle = producer.generate(**body)
    chunks = [ChatCompletionChunk.model_validate(each, strict=True) for each in chat_completion_chunks(
        handle, model="tiny-says", include_usage=True, timeout_s=60)]  # fmt: skip
    result = handle.result(timeout_s=60)
    whole = ChatCompletion.model_validate(chat_completion(result, handle.job_id), strict=True)
    assert len(whole.choices) == (body.get("n") or 1)
    assert [choice.index for choice in whole.choices] == list(range(len(whole.choices)))
    assert whole.usage is not None
    assert whole.usage == chunks[-1].usage
    if (most := body.get("max_tokens") or body.get("max_completion_tokens") or 0) > 0:
        assert 0 < whole.usage.completion_tokens <= most * len(whole.choices)
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.delta.content or "" for part in parts) == (choice.message.content or "")
        assert parts[-1].finish_reason == choice.finish_reason
    handle.delete()
