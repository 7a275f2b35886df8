"""`/v1/completions`: a text that goes on. Source: https://platform.openai.com/docs/api-reference/completions"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from ..chat_completions import finish_reason, usage
from ..contract import GenerationRequest, StreamOptions
from ..contract.conversation import ResponseFormat, Wire, invalid, without_nulls
from ..parsing import parse_request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..contract import Choice, GenerationResult, TokenLogprob
    from ..streams import Delta

ENDPOINT = "/v1/completions"
_DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""
_OWN = frozenset({"logprobs", "best_of", "echo", "suffix"})
"""Fields that a chat does not have, or has otherwise."""


_OneText: TypeAlias = Annotated[list[str], Field(min_length=1, max_length=1)]


def _one_text(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if len(value) == 1 and isinstance(value[0], str):
        return value[0]
    if value and isinstance(value[0], int | list):
        raise invalid("token ids are not read here, as they are another model's: send text")
    raise invalid("one text a request: send a request for each, which are answered together")


class CompletionsBody(Wire):
    """A text to go on with, as in OpenAI's older API."""

    prompt: Annotated[str, BeforeValidator(_one_text, json_schema_input_type=str | _OneText)]
    """One text, which may be in a list. Token ids, and more texts than one, are refused."""
    model: str | None = None
    max_tokens: Annotated[int, Field(gt=0, le=1_000_000)] = _DEFAULT_MAX_TOKENS
    min_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    n: Annotated[int, Field(gt=0, le=128)] = 1
    best_of: Annotated[int, Field(gt=0)] | None = None
    """As many as `n`: nothing is made to be thrown away."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    deterministic: bool = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """So many of the likeliest tokens of each place, beside the one that was taken."""
    response_format: ResponseFormat | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    echo: Literal[False] = False
    suffix: None = None
    user: str | None = None
    """Taken for OpenAI's sake."""

    _nulls = model_validator(mode="before")(without_nulls)

    @model_validator(mode="after")
    def _nothing_thrown_away(self) -> CompletionsBody:
        if self.best_of not in (None, self.n):
            raise invalid("nothing is made to be thrown away: ask for n", field="best_of")
        return self


def completion_payload(body: CompletionsBody, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What is sent for `body`, which was read from `fields`. Raises `InvalidRequestError`."""
    payload = {name: value for name, value in fields.items() if value is not None and name not in _OWN}
    payload |= {"prompt": body.prompt, "max_tokens": body.max_tokens}
    if body.logprobs is not None:
        payload |= {"logprobs": True, "top_logprobs": body.logprobs}
    parse_request(GenerationRequest, payload)
    return payload


def text_completion(result: GenerationResult, job_id: str) -> dict[str, Any]:
    choices = [_choice(at, each.text, each) for at, each in enumerate(result.choices)]
    return {
        **_head(job_id, result.model, int(time.time()), result.provenance.fingerprint),
        "choices": choices,
        "usage": usage(result.usage),
    }


class TextChunks:
    """The chunks of a stream: text, how each ended, and with `with_usage` what it took."""

    def __init__(self, job_id: str, model: str, with_usage: bool) -> None:
        self._head = _head(job_id, model, int(time.time()), None)
        self._with_usage = with_usage

    def said(self, delta: Delta) -> Iterator[dict[str, Any]]:
        if delta.text:
            yield self._chunk([_choice(delta.choice, delta.text)])

    def ended(self, result: GenerationResult) -> Iterator[dict[str, Any]]:
        for at, each in enumerate(result.choices):
            yield self._chunk([_choice(at, "", each)])
        if self._with_usage:
            yield self._chunk([]) | {"usage": usage(result.usage)}

    def _chunk(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "choices": choices, **({"usage": None} if self._with_usage else {})}


def _head(job_id: str, model: str, created: int, fingerprint: str | None) -> dict[str, Any]:
    return {
        "id": f"cmpl-{job_id}",
        "object": "text_completion",
        "created": created,
        "model": model,
        "system_fingerprint": fingerprint,
    }


def _choice(index: int, text: str, ended: Choice | None = None) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "finish_reason": None if ended is None else finish_reason(ended),
        "logprobs": None if ended is None or ended.logprobs is None else _logprobs(ended.logprobs),
    }


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    offsets, at = [], 0
    for each in tokens:
        offsets.append(at)
        at += len(each.token)
    return {
        "tokens": [each.token for each in tokens],
        "token_logprobs": [each.logprob for each in tokens],
        "top_logprobs": [{other.token: other.logprob for other in each.top_logprobs} for each in tokens],
        "text_offset": offsets,
    }
