"""A generation job on its way: what it asks for, whose time passes, and how far its stream has been told."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from impetus_backends.protocol import GenerationWork
from impetus_producer.contract import GENERATION_QUEUE
from impetus_producer.enqueueing.parsing import MOST_LEVELS, is_deeper

from .planning.quarantine import Witness

_BEGINNING_CHARACTERS = 512
"""About as many as make a beginning that engines remember."""
_ROLES = {"developer": "system"}

if TYPE_CHECKING:
    from impetus_producer.contract import GenerationRequest
    from impetus_producer.contract.conversation import Message

    from ..leases.claims import ClaimedJob
    from ..leases.outcomes import Failed, Stopped


@dataclass(eq=False, slots=True)
class OpenGeneration(Witness):
    """A generation job whose request is read, and how far the engine has come with it."""

    job: ClaimedJob
    request: GenerationRequest
    engine_s: float | None = None
    """How long the engine had it, the time since `counted_from` aside; None if it never did."""
    counted_from: float | None = None
    """None while its time is not counted."""
    sent_at: float = 0.0
    """When the engine was given it."""
    parked: bool = False
    """Whether it waits in the engine for its model, and so takes no place."""
    run: str = ""
    """Names what the engine has begun of it, and is empty until it has."""
    streamed: dict[str, int] = field(default_factory=dict)
    """By channel, how many characters of this run have been told."""
    beginning: int = 0
    """The same for jobs that ask the same model for something that begins alike."""
    passed: int = 0
    """How many that came later began before it."""
    ending: Failed | Stopped | None = None
    """How it is to end as soon as the engine has handed over what it made."""

    def __post_init__(self) -> None:
        request, said = self.request, ""
        for text in (request.prompt or "", *(each.text for each in request.messages or ())):
            said += text[: _BEGINNING_CHARACTERS - len(said)]
        self.beginning = hash((request.model, bool(request.tools), said))

    @property
    def urgent(self) -> bool:
        return self.job.queue == GENERATION_QUEUE

    def resume(self, now: float) -> None:
        """Its time is the engine's from now on."""
        if self.counted_from is None:
            self.engine_s, self.counted_from = self.engine_s or 0.0, now

    def pause(self, now: float) -> None:
        """Its time is not the engine's for now."""
        self.engine_s, self.counted_from = self.spent_s(now), None

    def spent_s(self, now: float) -> float | None:
        if self.engine_s is None or self.counted_from is None:
            return self.engine_s
        return self.engine_s + now - self.counted_from

    def work(self, work_id: int) -> GenerationWork:
        """What the engine is asked for."""
        request = self.request
        return GenerationWork(
            id=work_id,
            prompt=request.prompt,
            messages=tuple(map(_for_templates, request.messages)) if request.messages else None,
            max_tokens=request.most_tokens,
            min_tokens=request.min_tokens,
            n=request.n,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            min_p=request.min_p,
            repetition_penalty=request.repetition_penalty,
            frequency_penalty=request.frequency_penalty,
            presence_penalty=request.presence_penalty,
            logit_bias=request.logit_bias,
            stop=tuple(request.stop),
            stop_token_ids=tuple(request.stop_token_ids),
            ignore_eos=request.ignore_eos,
            seed=request.seed,
            deterministic=request.deterministic,
            logprobs=request.logprobs,
            top_logprobs=request.top_logprobs or 0,
            schema=request.response_format.schema_text() if request.response_format is not None else None,
            special_tokens=request.special_tokens,
            continue_final_message=request.continue_final_message,
            template_variables=request.chat_template_kwargs,
            reasoning_effort=request.effort,
            max_reasoning_tokens=request.max_reasoning_tokens,
            tools=tuple(tool.model_dump(exclude_unset=True) for tool in request.offered_tools),
            tool_choice=request.which_tool,
            parallel_tool_calls=request.parallel_tool_calls,
            model=request.model,
            stream=request.stream,
        )


def _for_templates(message: Message) -> dict[str, Any]:
    """As chat templates read messages: arguments of calls are objects, and what is not there is not named."""
    is_text = all(part.other is None for part in message.content)
    content = message.text if is_text else [part.as_sent() for part in message.content]
    made: dict[str, Any] = {"role": _ROLES.get(message.role, message.role), "content": content}
    told = {"name": message.name, "tool_call_id": message.tool_call_id, "reasoning_content": message.thoughts}
    made |= {name: value for name, value in told.items() if value is not None}
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return made


def _arguments(text: str) -> Any:
    try:
        read = json.loads(text or "{}")
    except (ValueError, RecursionError):  # what a model wrote once need not be JSON
        return text
    return text if is_deeper(read, MOST_LEVELS) else read
