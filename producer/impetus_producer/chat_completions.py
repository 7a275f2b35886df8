"""Results in OpenAI's words: what `POST /v1/chat/completions` answers, whole or in chunks.

Plain data, as the `openai` package's own types read it; that package is not needed. Source of names and shapes:
https://platform.openai.com/docs/api-reference/chat/object and .../chat/streaming
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .contract import Choice, GenerationResult, GenerationUsage, LikelyToken, TokenLogprob
    from .contract.conversation import ToolCall
    from .handles import GenerationHandle
    from .streams import Delta


def chat_completion(result: GenerationResult, job_id: str, *, created: int | None = None) -> dict[str, Any]:
    """A `chat.completion`. `created`: when, in seconds since 1970; none means now."""
    return {
        **_head(result.model, result.provenance.fingerprint, job_id, "chat.completion", created),
        "choices": [
            {
                "index": index,
                "finish_reason": finish_reason(choice),
                "logprobs": _logprobs(choice.logprobs),
                "message": _message(choice),
            }
            for index, choice in enumerate(result.choices)
        ],
        "usage": usage(result.usage),
    }


def chat_completion_chunks(
    handle: GenerationHandle,
    *,
    model: str = "",
    include_usage: bool = False,
    timeout_s: float | None = None,
    created: int | None = None,
) -> Iterator[dict[str, Any]]:
    """The `chat.completion.chunk`s of a job while it runs, as they come. `model`: the name that chunks carry.

    Raises what `handle.deltas()` raises.
    """
    chunks = ChatChunks(handle.job_id, model=model, include_usage=include_usage, created=created)
    for delta in handle.deltas(timeout_s):
        yield from chunks.said(delta)
    yield from chunks.ended(handle.result(timeout_s))


class ChatChunks:
    """Makes the `chat.completion.chunk`s of one job: first each answer's role, then what the model says, then how each
    answer ended, and with `include_usage` what it took.
    """

    def __init__(
        self, job_id: str, *, model: str = "", include_usage: bool = False, created: int | None = None
    ) -> None:
        self._job_id = job_id
        self._model = model
        self._include_usage = include_usage
        self._created = int(time.time()) if created is None else created
        self._begun: set[int] = set()
        self._called: dict[int, int] = {}

    def said(self, delta: Delta) -> Iterator[dict[str, Any]]:
        yield from self._role(delta.choice)
        yield self._chunk([_part(delta.choice, _said(delta, self._called))])

    def ended(self, result: GenerationResult) -> Iterator[dict[str, Any]]:
        fingerprint = result.provenance.fingerprint
        for index, choice in enumerate(result.choices):
            yield from self._role(index)
            yield self._chunk([_part(index, {}, finish_reason(choice), _logprobs(choice.logprobs))], fingerprint)
        if self._include_usage:
            yield self._chunk([], fingerprint, usage=usage(result.usage))

    def _role(self, index: int) -> Iterator[dict[str, Any]]:
        if index not in self._begun:
            self._begun.add(index)
            yield self._chunk([_part(index, {"role": "assistant", "content": ""})])

    def _chunk(self, choices: Sequence[dict[str, Any]], fingerprint: str | None = None, **more: Any) -> dict[str, Any]:
        return {
            **_head(self._model, fingerprint, self._job_id, "chat.completion.chunk", self._created),
            "choices": choices,
            **({"usage": None} if self._include_usage else {}),
            **more,
        }


def usage(used: GenerationUsage) -> dict[str, Any]:
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
    }


def _head(model: str, fingerprint: str | None, job_id: str, kind: str, created: int | None) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{job_id}",
        "object": kind,
        "created": int(time.time()) if created is None else created,
        "model": model,
        "system_fingerprint": fingerprint,
    }


def finish_reason(choice: Choice) -> str:
    """In OpenAI's words, which has none for an answer that was stopped from outside."""
    return "stop" if choice.finish_reason == "cancelled" else choice.finish_reason


def _message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.reasoning_content is not None:
        message["reasoning_content"] = choice.reasoning_content
    if choice.tool_calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [_call(call) for call in choice.tool_calls]
    return message


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function",
            "function": {"name": call.function.name, "arguments": call.function.arguments}}  # fmt: skip


def _part(
    index: int, delta: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}


def _said(delta: Delta, called: dict[int, int]) -> dict[str, Any]:
    """`called`: how many calls each answer has made; each gets the next number."""
    said: dict[str, Any] = {}
    if delta.text:
        said["content"] = delta.text
    if delta.reasoning:
        said["reasoning_content"] = delta.reasoning
    if delta.calls:
        first = called.get(delta.choice, 0)
        called[delta.choice] = first + len(delta.calls)
        said["tool_calls"] = [{"index": first + at, **_call(call)} for at, call in enumerate(delta.calls)]
    return said


def _logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    return {
        "content": [
            {**_likely(each), "top_logprobs": [_likely(other) for other in each.top_logprobs]}
            for each in tokens
        ],
        "refusal": None,
    }  # fmt: skip


def _likely(token: LikelyToken) -> dict[str, Any]:
    """The bytes of a token that is only a part of a character are not those of \ufffd."""
    spelt = token.bytes if token.bytes is not None or "\ufffd" in token.token else list(token.token.encode())
    return {"token": token.token, "logprob": token.logprob, "bytes": spelt}
