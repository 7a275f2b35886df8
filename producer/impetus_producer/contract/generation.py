"""Generation: a conversation or a prompt, and what a model says to it.

Names and meanings are those of OpenAI's chat completions, where those have them
(https://platform.openai.com/docs/api-reference/chat). The parts of a conversation are in `conversation.py`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from .conversation import (
    MAX_TOOLS,
    AllowedTools,
    Asked,
    Message,
    NamedTool,
    ResponseFormat,
    Told,
    Tool,
    ToolCall,
    ToolChoice,
    check_tools,
    check_turns,
    checked_text,
    invalid,
    whole,
)
from .elsewhere import CHANGE_NOTHING
from .provenance import Provenance

_Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Reasoning(Asked):
    """OpenRouter's form of `reasoning_effort`."""

    effort: _Effort | None = None
    exclude: Literal[False] = False


def _limit(value: Any) -> Any:
    """LM Studio and llama.cpp have -1 where there is none."""
    return None if type(value) is int and value == -1 else value


TopP: TypeAlias = Annotated[float, Field(ge=0, le=1)]
TopK: TypeAlias = Annotated[int, Field(ge=-1, lt=2**31), AfterValidator(lambda count: max(count, 0))]
TokenIds: TypeAlias = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(whole)]], Field(max_length=64)
]
_Limit: TypeAlias = Annotated[Annotated[int, Field(gt=0, le=1_000_000)] | None, BeforeValidator(_limit)]


def _checked_stop(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class StreamOptions(Asked):
    changes_nothing = MappingProxyType({"continuous_usage_stats": (False,)})
    include_usage: bool = False
    """Taken for OpenAI's sake: a result always has its usage."""
    include_obfuscation: bool = False
    """Taken for OpenAI's sake."""


class PromptCacheOptions(Asked):
    """Taken for OpenAI's sake: what prompts begin with is remembered while there is room."""

    mode: Literal["implicit", "explicit"] = "implicit"
    ttl: Literal["30m"] = "30m"


def _text_alone(value: Any) -> Any:
    if isinstance(value, list) and any(each != "text" for each in value):
        kinds = ", ".join(str(each)[:20] for each in value if each != "text")
        raise invalid(f"{kinds}: this model answers in text")
    return value


def _no_functions(value: Any) -> Any:
    if value not in ([], "none", "auto"):
        raise invalid("is the former form of tools: say 'tools' and 'tool_choice'")
    return value


def _bias_by_token(value: Any) -> Any:
    """JSON has token ids as strings."""
    if not isinstance(value, dict):
        return value
    made: dict[int, Any] = {}
    for token, bias in value.items():
        if not (isinstance(token, int) or (isinstance(token, str) and token.isascii() and token.isdecimal())):
            raise invalid(f"{str(token)[:20]!r} is no token id")
        if len(str(token)) > 10:
            raise invalid(f"{str(token)[:20]}: no vocabulary has so many tokens")
        made[int(token)] = bias
    return made


class GenerationRequest(Asked):
    """A text to continue (`prompt`) or a conversation to answer (`messages`), one of the two.

    Names and meanings are those of OpenAI's chat completions, as far as they have any here; null says the same as
    nothing. Where a request does not say how to draw tokens, the model's own `generation_config.json` does, and where
    that is silent too, all tokens may be drawn with their own probabilities. The result says what held.
    """

    changes_nothing = CHANGE_NOTHING

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096), AfterValidator(check_turns)] | None = None
    prompt: str | None = None
    model: str | None = None
    """One of those the worker serves; none means its default."""
    max_tokens: _Limit = None
    """None, or -1: what is left of the model's context, up to what the worker allows (`--max-answer-tokens`)."""
    max_completion_tokens: _Limit = None
    """The same, by its newer name."""
    min_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """So many come before the text may end by itself."""
    n: Annotated[int, Field(gt=0, le=128)] = 1
    """So many answers, made one after another in one place; the seed of each is one more than that before."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 always takes the likeliest token."""
    top_p: TopP | None = None
    """Draw from the likeliest tokens that together make up this probability; from one at least."""
    top_k: TopK | None = None
    """Draw from so many of the likeliest tokens; 0, and vLLM's -1, from all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Draw from tokens at least so probable, as a share of the likeliest one's probability."""
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    """Divides the odds of tokens that stand in the prompt or the answer (https://arxiv.org/abs/1909.05858)."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken off a token's logit for each time that it stands in the answer."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken off a token's logit once it stands in the answer."""
    logit_bias: Annotated[
        dict[int, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_bias_by_token), Field(max_length=1024)
    ] = Field(default_factory=dict)
    """Added to the logits of these token ids; -100 bans one, 100 allows no other."""
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        BeforeValidator(_checked_stop, json_schema_input_type=str | list[str]),
        Field(max_length=16),
    ] = Field(default_factory=list)
    """Text ends before the first of these; it never holds one. In what a model thinks they end nothing."""
    stop_token_ids: TokenIds = Field(default_factory=list)
    """Tokens that end a text as the model's own end-of-text tokens do."""
    ignore_eos: bool = False
    """Go on to `max_tokens`: the model's own end-of-text tokens are never drawn."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """The same seed draws the same tokens where the same probabilities are computed: on a CPU always, on a GPU not
    where two tokens are all but equally likely, as how it rounds depends on who decodes beside."""
    deterministic: bool = False
    """Decode in a batch of its own, so that nobody beside it changes how the device rounds: the same request has the
    same text on the same machine. One such job runs at a time, in turn with the others."""
    logprobs: bool = False
    """Also return each token with the logarithm of its probability."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """With `logprobs`: also the so many likeliest tokens of each place."""
    response_format: ResponseFormat | None = None
    special_tokens: Literal["control", "text"] | None = None
    """What the model's special tokens are where they stand in the content of messages: `control`, as the model knows
    them, so that a text may close its turn, or `text` like any other. None: as the worker is told, else `control`."""
    continue_final_message: bool = False
    """The answer goes on from the last message, an assistant's, and holds only what is new."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further variables of the model's chat template; one that it does not know has no effect."""
    reasoning_effort: _Effort | None = None
    """For templates that know it; `none` turns thinking off where it can be turned off."""
    reasoning: Reasoning | None = None
    """The same, in an object."""
    max_reasoning_tokens: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Of a model that thinks: after so many tokens its thoughts are brought to an end."""
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS), AfterValidator(check_tools)] = Field(default_factory=list)
    """What the model may ask to be called."""
    tool_choice: ToolChoice | None = None
    """`none`: an answer in text; `auto`, the default with tools: as the model likes; `required`: some call; or a call
    of the one that is named; or one of the first two of some of the tools alone."""
    parallel_tool_calls: bool = True
    """False: at most one call."""
    stream: bool = False
    """Also write the text to the Redis stream `STREAM_KEY` + job id while it is made."""
    cancel_if_abandoned: bool = False
    """Stop it once nobody has waited for it for `ABANDONED_AFTER_S`. Handles say that they wait; whoever enqueues with
    plain RQ sets the key `AWAITED_KEY` + job id."""

    # What OpenAI's clients may send and what changes nothing here.
    stream_options: StreamOptions | None = None
    modalities: Annotated[list[str], BeforeValidator(_text_alone)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=64)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    store: Literal[False] | None = None
    """Results are kept in Redis for a while, and nowhere else."""
    service_tier: Literal["auto", "default"] | None = None
    verbosity: Literal["medium"] | None = None
    priority: Literal[0] | None = None
    """Order is by queue: `Producer.generate(bulk=True)` waits for all that is not bulk."""
    add_generation_prompt: bool | None = None
    """vLLM's word for the opposite of `continue_final_message`."""
    audio: None = None
    prediction: None = None
    web_search_options: None = None
    functions: Annotated[list[Any], BeforeValidator(_no_functions)] | None = None
    function_call: Annotated[Literal["none", "auto"], BeforeValidator(_no_functions)] | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompt_size(cls, value: Any) -> Any:
        return value if value is None else checked_text(value, "the prompt")

    @model_validator(mode="after")
    def _goes_together(self) -> GenerationRequest:
        if (self.messages is None) == (self.prompt is None):
            raise invalid("send either 'prompt' or 'messages', and not both")
        if self.max_completion_tokens is not None and self.max_tokens not in (None, self.max_completion_tokens):
            raise invalid("is not max_tokens, which means the same", field="max_completion_tokens")
        if self.reasoning_effort not in (None, self.effort):
            raise invalid("is not reasoning_effort, which means the same", field="reasoning.effort")
        if self.top_logprobs and not self.logprobs:
            raise invalid("goes with 'logprobs': true", field="top_logprobs")
        if self.prompt is not None:
            self._check_prompt_alone()
        if self.continue_final_message and self.messages is not None and self.messages[-1].role != "assistant":
            raise invalid("the last message is not an assistant's", field="continue_final_message")
        if self.add_generation_prompt not in (None, not self.continue_final_message):
            raise invalid("is true but where continue_final_message is, and false there", field="add_generation_prompt")
        for name in self._named_tools:
            if name not in {tool.function.name for tool in self.tools}:
                raise invalid(f"there is no tool {name[:100]!r}", field="tool_choice")
        if self.tool_choice == "required" and not self.tools:
            raise invalid("there are no tools", field="tool_choice")
        if (self.ignore_eos or self.min_tokens) and self.keeps_to_a_form:
            raise invalid("goes with neither ignore_eos nor min_tokens: JSON ends where it is complete",
                          field="response_format")  # fmt: skip
        if self.calls_for_a_tool and self.response_format is not None and self.response_format.type != "text":
            raise invalid("an answer that is a call of a tool has no format", field="response_format")
        return self

    def _check_prompt_alone(self) -> None:
        about_messages = (
            ("special_tokens", self.special_tokens == "text"),
            ("continue_final_message", self.continue_final_message),
            ("chat_template_kwargs", bool(self.chat_template_kwargs)),
            ("reasoning_effort", self.effort is not None),
            ("max_reasoning_tokens", self.max_reasoning_tokens is not None),
            ("tools", bool(self.tools)),
        )
        for name, is_there in about_messages:
            if is_there:
                raise invalid(f"'{name}' is about 'messages': a 'prompt' is read as it is", field=name)

    @property
    def most_tokens(self) -> int | None:
        """Of an answer; None where the request does not say."""
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens

    @property
    def effort(self) -> str | None:
        """To think with, by whichever name it is asked for."""
        return self.reasoning.effort if self.reasoning is not None and self.reasoning.effort else self.reasoning_effort

    @property
    def keeps_to_a_form(self) -> bool:
        """Whether the answer is JSON, whatever the model would like."""
        return self.calls_for_a_tool or (self.response_format is not None and self.response_format.type != "text")

    @property
    def calls_for_a_tool(self) -> bool:
        """Whether the answer has to be a call."""
        return self.which_tool not in ("none", "auto")

    @property
    def which_tool(self) -> str:
        """`none`, `auto`, `required`, or `=` and the name of the one to call: of `offered_tools`."""
        match self.tool_choice:
            case NamedTool():
                return f"={self.tool_choice.function.name}"
            case AllowedTools():
                return self.tool_choice.allowed_tools.mode
        return self.tool_choice or "auto"

    @property
    def offered_tools(self) -> list[Tool]:
        """Those that the model reads of."""
        if not isinstance(self.tool_choice, AllowedTools):
            return self.tools
        return [tool for tool in self.tools if tool.function.name in self._named_tools]

    @property
    def _named_tools(self) -> list[str]:
        match self.tool_choice:
            case NamedTool():
                return [self.tool_choice.function.name]
            case AllowedTools():
                return [each.function.name for each in self.tool_choice.allowed_tools.tools]
        return []


class GenerationUsage(Told):
    """Of all answers together; the prompt is counted once."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """How many of the prompt's tokens were not read again, because an earlier prompt began with them."""
    reasoning_tokens: int = 0
    """How many of the completion's tokens are thoughts."""


class GenerationTimings(Told):
    """Seconds, on the worker's clock."""

    first_token_s: float
    """From the engine's taking the request to its first token."""
    total_s: float


class LikelyToken(Told):
    """A token as text; one that holds only part of a character is \ufffd."""

    token: str
    logprob: float
    """The natural logarithm of its probability, before temperature and the cuts of top_p, top_k and min_p."""
    bytes: list[int] | None = None
    """Of a token that holds part of a character, where the tokenizer says what it stands for."""


class TokenLogprob(LikelyToken):
    """One token of an answer."""

    top_logprobs: list[LikelyToken] = Field(default_factory=list, fail_fast=True)
    """The likeliest tokens of its place, the likeliest first."""


FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "cancelled"]


class Choice(Told):
    """One answer."""

    text: str
    finish_reason: FinishReason
    """`stop`: it ended by itself or at a stop string; `length`: `max_tokens` ended it; `tool_calls`: it wants tools to
    be called; `cancelled`: something else did (the user, the timeout, nobody waiting), and this is what was made until
    then."""
    reasoning_content: str | None = None
    """What a model that thinks thought first. None: it does not, or did not."""
    tool_calls: list[ToolCall] = Field(default_factory=list, fail_fast=True)
    logprobs: Annotated[list[TokenLogprob], Field(fail_fast=True)] | None = None


class GenerationResult(Choice):
    """What a generation returns: its answer, and where `n` asked for more, those in `more_choices`."""

    object: Literal["generation"] = "generation"
    model: str
    usage: GenerationUsage
    timings: GenerationTimings
    provenance: Provenance
    sampling: dict[str, float] = Field(default_factory=dict)
    """By name, how tokens were drawn: what the request said, or the model's own files, or nobody."""
    more_choices: list[Choice] = Field(default_factory=list, fail_fast=True)

    @property
    def choices(self) -> list[Choice]:
        """All answers, `n` of them."""
        return [self, *self.more_choices]
