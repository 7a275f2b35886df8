"""`/v1/completions`: texts that go on. Source: https://platform.openai.com/docs/api-reference/completions"""

from __future__ import annotations

import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from ..chat_completions import finish_reason, usage
from ..contract.conversation import Asked, ResponseFormat, invalid
from ..contract.elsewhere import CHANGE_NOTHING
from ..contract.generation import GenerationRequest, GenerationUsage, StreamOptions, TokenIds, TopK, TopP
from ..enqueueing.parsing import parse_request
from ..errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..contract import Choice, GenerationResult, TokenLogprob
    from ..streams import Delta

ENDPOINT = "/v1/completions"
_DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""
_OWN = frozenset({"logprobs", "best_of", "echo", "suffix"})
"""Fields that a chat does not have, or has otherwise."""


MAX_PROMPTS = 128
"""In one request; each is a job."""

_Texts: TypeAlias = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]


def _texts(value: Any) -> Any:
    """As the contract's own model takes one."""
    if isinstance(value, list) and value and isinstance(value[0], int | list):
        raise invalid("token ids are not read here, as they are another model's: send text")
    return [value] if isinstance(value, str) else value


_CHANGE_NOTHING = MappingProxyType(
    {name: each for name, each in CHANGE_NOTHING.items() if name not in _OWN}
    | {"priority": (0,), "store": (False,), "suffix": ("",)}
)


class CompletionsBody(Asked):
    """Texts to go on with, as in OpenAI's older API."""

    changes_nothing = _CHANGE_NOTHING

    prompt: Annotated[_Texts, BeforeValidator(_texts, json_schema_input_type=str | _Texts)]
    """A text, or a list of at most 128, which are answered together: choices of the first, then of the next. Token ids
    are refused."""
    model: str | None = None
    max_tokens: Annotated[int, Field(gt=0, le=1_000_000)] = _DEFAULT_MAX_TOKENS
    min_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    n: Annotated[int, Field(gt=0, le=128)] = 1
    best_of: Annotated[int, Field(gt=0)] | None = None
    """As many as `n`: nothing is made to be thrown away."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: TokenIds | None = None
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

    @model_validator(mode="after")
    def _nothing_thrown_away(self) -> CompletionsBody:
        if self.best_of not in (None, self.n):
            raise invalid("nothing is made to be thrown away: ask for n", field="best_of")
        return self


def completion_payload(body: CompletionsBody, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What is sent for `body`, which was read from `fields`, where one job has to do. Raises `InvalidRequestError`."""
    if len(body.prompt) > 1:
        raise InvalidRequestError("prompt: one text, where nobody waits: send a request for each", field="prompt")
    return completion_payloads(body, fields)[0]


def completion_payloads(body: CompletionsBody, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """As `completion_payload`, one for each prompt."""
    said = CompletionsBody.what_says_something(dict(fields))
    payload = {name: value for name, value in said.items() if name not in _OWN}
    payload |= {"prompt": body.prompt[0], "max_tokens": body.max_tokens}
    if body.logprobs is not None:
        payload |= {"logprobs": True, "top_logprobs": body.logprobs}
    payloads = [payload | {"prompt": prompt} for prompt in body.prompt]
    for each in payloads:
        parse_request(GenerationRequest, each)
    return payloads


def text_completion(results: Sequence[GenerationResult], job_id: str) -> dict[str, Any]:
    """The answer to as many prompts. `job_id`: of the first."""
    choices = [each for result in results for each in result.choices]
    return {
        **_head(job_id, results[0].model, int(time.time()), results[0].provenance.fingerprint),
        "choices": [_choice(at, each.text, each) for at, each in enumerate(choices)],
        "usage": usage(_together([result.usage for result in results])),
    }


def _together(several: Sequence[GenerationUsage]) -> GenerationUsage:
    sums = {name: sum(getattr(each, name) for each in several) for name in GenerationUsage.model_fields}
    return GenerationUsage(**sums)


class TextChunks:
    """The chunks of one prompt's stream: text, and how each answer ended. `with_usage`: whether `usage_chunk` follows.
    `first`: the number of the first answer.
    """

    def __init__(self, job_id: str, model: str, with_usage: bool, first: int = 0) -> None:
        self._head = _head(job_id, model, int(time.time()), None)
        self._with_usage = with_usage
        self._first = first
        self.used: GenerationUsage | None = None
        """What it took, once it has ended."""

    def said(self, delta: Delta) -> Iterator[dict[str, Any]]:
        if delta.text:
            yield self.chunk([_choice(self._first + delta.choice, delta.text)])

    def ended(self, result: GenerationResult) -> Iterator[dict[str, Any]]:
        self.used = result.usage
        for at, each in enumerate(result.choices, self._first):
            yield self.chunk([_choice(at, "", each)])

    def chunk(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "choices": choices, **({"usage": None} if self._with_usage else {})}


def usage_chunk(several: Sequence[TextChunks]) -> dict[str, Any]:
    """The last chunk of a stream: what all of its prompts took."""
    used = [each.used for each in several if each.used is not None]
    return several[0].chunk([]) | {"usage": usage(_together(used))}


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
