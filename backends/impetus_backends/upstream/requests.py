"""`GenerationWork` in OpenAI's words: what to POST where.

What is not asked for is not named, so that a server stumbles over no field that nobody wanted.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..protocol import GenerationWork


def refusal(work: GenerationWork) -> str | None:
    """Why no server of this API can be asked for what is wanted, as a sentence; None where one can."""
    if work.special_tokens == "text":
        return "special_tokens: how an upstream server reads special tokens in messages is its own affair"
    if work.deterministic:
        return "deterministic: an upstream server does not say what it decodes beside a request"
    if work.max_reasoning_tokens is not None:
        return "max_reasoning_tokens: servers have no common name for it"
    return None


def request_of(
    work: GenerationWork, *, model: str, answers_before: int, max_answer_tokens: int | None
) -> tuple[str, dict[str, Any]]:
    """The path below the server's URL, and the body. `answers_before`: of its `n`, how many there are already;
    `max_answer_tokens`: of one whose request does not say."""
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if (most := work.max_tokens or max_answer_tokens) is not None:
        body["max_tokens"] = most
    body |= _sampling(work)
    if (missing := work.n - answers_before) > 1:
        body["n"] = missing
    if work.seed is not None:
        body["seed"] = work.seed + answers_before
    if work.schema is not None:
        # Not json_object, whatever the schema: there are servers that know this form alone.
        schema = {"name": "answer", "strict": True, "schema": json.loads(work.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if work.messages is None:
        if work.logprobs:
            body["logprobs"] = max(1, work.top_logprobs)
        return "/completions", body | {"prompt": work.prompt}
    if work.logprobs:
        body["logprobs"] = True
        if work.top_logprobs:
            body["top_logprobs"] = work.top_logprobs
    return "/chat/completions", body | _conversation(work)


def _sampling(work: GenerationWork) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "temperature": work.temperature,
        "top_p": work.top_p,
        "top_k": work.top_k,
        "min_p": work.min_p,
        "repetition_penalty": work.repetition_penalty,
        "repeat_penalty": work.repetition_penalty,  # as llama.cpp and those built on it call it
        "frequency_penalty": work.frequency_penalty or None,
        "presence_penalty": work.presence_penalty or None,
        "logit_bias": {str(token): bias for token, bias in work.logit_bias.items()} or None,
        "stop": list(work.stop) or None,
        "stop_token_ids": list(work.stop_token_ids) or None,
        "min_tokens": work.min_tokens or None,
        "ignore_eos": work.ignore_eos or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _conversation(work: GenerationWork) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [_message(each) for each in work.messages or ()]}
    if work.tools:
        body["tools"] = [dict(tool) for tool in work.tools]
        if work.tool_choice.startswith("="):
            body["tool_choice"] = {"type": "function", "function": {"name": work.tool_choice[1:]}}
        elif work.tool_choice != "auto":
            body["tool_choice"] = work.tool_choice
        if not work.parallel_tool_calls:
            body["parallel_tool_calls"] = False
    if work.reasoning_effort is not None:
        body["reasoning_effort"] = work.reasoning_effort
    if work.template_variables:
        body["chat_template_kwargs"] = dict(work.template_variables)
    if work.continue_final_message:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """The API has the arguments of calls as text, where chat templates have them as objects."""
    made = dict(message)
    if calls := made.get("tool_calls"):
        made["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _as_text(call["function"]["arguments"])}}
            for call in calls
        ]
    return made


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
