"""The parts of a conversation, as in OpenAI's chat completions: messages, tools, and calls of tools.

Only what can mean something to a model that reads text is taken; anything else is refused by its name. Source of names
and shapes: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

MAX_TEXT_BYTES = 10_000_000
"""The longest single text or prompt, in bytes of UTF-8."""
MAX_SCHEMA_BYTES = 100_000
"""The largest JSON schema that a request may ask its answer to keep to, and the most that its tools may take."""
MAX_TOOLS = 128

_OTHER_PARTS = {
    "image_url": "an image",
    "input_image": "an image",
    "input_audio": "audio",
    "audio_url": "audio",
    "video_url": "a video",
    "file": "a file",
    "input_file": "a file",
}
"""What the parts of messages are that are none of text, by their types in OpenAI's API and vLLM's."""


class Wire(BaseModel):
    """What crosses Redis: frozen, strict, and without fields that nobody knows."""

    # defer_build: services that only enqueue pay for the models they use.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=(), defer_build=True)


def whole(value: Any) -> Any:
    """6.0 is 6: JSON's numbers are of one kind."""
    return int(value) if type(value) is float and value.is_integer() else value


class Asked(Wire):
    """What services ask for: null says the same as nothing, and a whole number may be written with a point."""

    not_read: ClassVar[frozenset[str]] = frozenset()
    """Names of what others write there for themselves."""
    changes_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({})
    """By names of fields that there are elsewhere, the values that ask for what is done here anyway."""

    @classmethod
    def what_says_something(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Those that ask for something here, or that there are not."""
        passed_over = cls.changes_nothing
        if None not in fields.values() and cls.not_read.isdisjoint(fields) and passed_over.keys().isdisjoint(fields):
            return fields  # as nearly always
        return {
            name: each
            for name, each in fields.items()
            if each is not None and name not in cls.not_read and each not in passed_over.get(name, ())
        }

    @model_validator(mode="before")
    @classmethod
    def _as_far_as_it_says_something(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        said = cls.what_says_something(value)
        return {name: whole(each) for name, each in said.items()} if float in map(type, said.values()) else said


class Told(Wire):
    """What workers say: fields of later versions are passed over, so that workers may be upgraded before services."""

    model_config = ConfigDict(extra="ignore")


def invalid(sentence: str, *, field: str = "") -> PydanticCustomError:
    """What is wrong, in one sentence; `field`: with which part of what is looked at."""
    return PydanticCustomError("invalid", "{sentence}", {"sentence": sentence, "field": field})


def json_type(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


def checked_text(value: Any, what: str = "the text") -> str:
    if not isinstance(value, str):
        raise invalid(f"{what} must be a string, not {json_type(value)}")
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise invalid(f"{what} holds half a surrogate pair, which is no text") from None
    if size > MAX_TEXT_BYTES:
        raise invalid(f"{what} is longer than {MAX_TEXT_BYTES:,} bytes of UTF-8")
    return value


_TEXTS = ("text", "input_text", "output_text", "refusal")
"""Kinds of parts that are text, two of them by the names that OpenAI's Responses have for it."""
_NOT_READ_ON_PARTS = ("annotations", "cache_control", "prompt_cache_breakpoint")
"""The marks are for servers that bill what they remember."""


class ContentPart(Wire):
    """A piece of a message: of its text, or something else, which is for the servers that some workers forward to."""

    type: Annotated[str, Field(min_length=1, max_length=64)]
    text: Annotated[str, BeforeValidator(checked_text)] = ""
    other: dict[str, Any] | None = None
    """What is none of text, as it was sent: it is not looked at."""

    @model_validator(mode="before")
    @classmethod
    def _apart(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise invalid(f"must be an object with a type, not {json_type(value)}")
        if not isinstance(kind := value.get("type"), str):
            return value
        if kind not in _TEXTS:
            return {"type": kind, "other": value}
        text = value.get(kind, value.get("text"))
        given = {name for name, each in value.items() if each is not None and name not in _NOT_READ_ON_PARTS}
        if more := sorted(given - {"type", "text", kind}):
            raise invalid("there is no such field", field=str(more[0]))
        return {"type": "text", "text": checked_text(text, f"a part's {kind}")}

    @property
    def what(self) -> str:
        """For people: what it is, if no text."""
        return _OTHER_PARTS.get(self.type, f"a part of the type {self.type!r}")

    def as_sent(self) -> dict[str, Any]:
        """As OpenAI's API has it."""
        return self.other if self.other is not None else {"type": "text", "text": self.text}


def _as_parts(value: Any) -> Any:
    return [{"type": "text", "text": checked_text(value)}] if isinstance(value, str) else value


class CalledFunction(Asked):
    not_read = frozenset({"parsed_arguments", "provider_specific_fields"})

    name: Annotated[str, Field(min_length=1, max_length=128)]
    arguments: Annotated[str, BeforeValidator(checked_text)] = "{}"
    """JSON, as the model wrote it."""


class ToolCall(Asked):
    """What a model wants done: one call of one of the request's tools."""

    not_read = frozenset({"provider_specific_fields", "extra_content"})

    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None
    """Its place among the calls of an answer, which streams state."""


class Message(Asked):
    """One turn of a conversation. `developer` speaks as `system` does."""

    not_read = frozenset({"annotations", "cache_control", "parsed", "provider_specific_fields"})
    """What OpenAI's package and LiteLLM add to answers that are sent back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        list[ContentPart],
        BeforeValidator(_as_parts, json_schema_input_type=str | list[dict[str, Any]]),
        Field(max_length=4096),
    ] = Field(default_factory=list)
    """A string, or a list of parts, of which those of text are joined; null or absent beside tool calls."""
    name: Annotated[str, Field(max_length=256)] | None = None
    """Of the person, or the tool, that speaks: for templates that say it."""
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_call_id: str | None = None
    """Of a `tool` message: the call that it answers."""
    reasoning_content: Annotated[str, BeforeValidator(checked_text)] | None = None
    """Of an `assistant` message: what it thought, for templates that say it."""
    reasoning: Annotated[str, BeforeValidator(checked_text)] | None = None
    """The same, by the name that some servers answer with."""
    refusal: Annotated[str, BeforeValidator(checked_text)] | None = None
    """Taken as text where there is no other."""
    reasoning_details: list[Any] = Field(default_factory=list)
    """What it thought once more, as OpenRouter has it, which is not read."""
    thinking_blocks: list[Any] = Field(default_factory=list)
    """The same, as LiteLLM has it."""
    prefix: Literal[False] = False
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.role != "assistant" and (self.tool_calls or self.thoughts is not None):
            raise invalid("tool_calls and reasoning_content are an assistant's")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise invalid("tool_call_id goes with the role tool, and with no other")
        for name in ("reasoning_details", "thinking_blocks"):
            if getattr(self, name) and self.thoughts is None:
                raise invalid("is read where reasoning_content says the same", field=name)
        if "content" not in self.model_fields_set and not self.tool_calls and self.refusal is self.thoughts is None:
            raise invalid("this field is required", field="content")
        return self

    @property
    def thoughts(self) -> str | None:
        return self.reasoning_content if self.reasoning_content is not None else self.reasoning

    @property
    def text(self) -> str:
        if not self.content and self.refusal is not None:
            return self.refusal
        return self.content[0].text if len(self.content) == 1 else "".join(part.text for part in self.content)


class Function(Asked):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """The JSON schema of its arguments; none: it takes none."""
    strict: bool | None = None
    """Whether arguments that do not keep to the schema fail the answer."""


class Tool(Asked):
    """A function that the model may ask to be called."""

    not_read = frozenset({"cache_control"})

    type: Literal["function"]
    function: Function


class _NamedFunction(Asked):
    name: str


class NamedTool(Asked):
    """The one tool that the model has to call."""

    type: Literal["function"]
    function: _NamedFunction


class _Allowed(Asked):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedTools(Asked):
    """Those of the tools that may be called now, as the model likes or one for certain; it reads of no other."""

    type: Literal["allowed_tools"]
    allowed_tools: _Allowed


def _kind_of_choice(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", "")
    if kind == "allowed_tools":
        return "choice-allowed"
    return "choice-named" if isinstance(value, dict | NamedTool) else "choice-word"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("choice-word")]
    | Annotated[NamedTool, Tag("choice-named")]
    | Annotated[AllowedTools, Tag("choice-allowed")],
    Discriminator(_kind_of_choice),
]


def check_tools(tools: list[Tool]) -> list[Tool]:
    size = sum(len(json.dumps(each.function.parameters)) for each in tools)
    if size > MAX_SCHEMA_BYTES:
        raise invalid(f"the {size:,} bytes of their parameters are more than the {MAX_SCHEMA_BYTES:,} allowed")
    names = [each.function.name for each in tools]
    if len(set(names)) < len(names):
        raise invalid("two of them have the same name")
    return tools


def check_turns(messages: list[Message]) -> list[Message]:
    """Every answer of a tool answers a call that was made before it."""
    called: set[str] = set()
    for at, message in enumerate(messages):
        if message.tool_call_id is not None and message.tool_call_id not in called:
            raise invalid("answers no call that an earlier message makes", field=f"{at}.tool_call_id")
        called |= {call.id for call in message.tool_calls}
    return messages


class JsonSchema(Asked):
    """A named JSON schema, as in OpenAI's structured outputs."""

    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    name: str = ""
    description: str = ""
    strict: bool | None = None
    """Taken for OpenAI's sake: an answer keeps to the schema in any case."""

    @field_validator("json_schema")
    @classmethod
    def _small_enough(cls, value: dict[str, Any]) -> dict[str, Any]:
        if (size := len(json.dumps(value))) > MAX_SCHEMA_BYTES:
            raise invalid(f"the schema's {size:,} bytes are more than the {MAX_SCHEMA_BYTES:,} allowed")
        return value


class ResponseFormat(Asked):
    """What an answer has to be: any text, some JSON object, or JSON that keeps to a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise invalid("'json_schema' goes with the type json_schema, and with no other")
        return self

    def schema_text(self) -> str | None:
        """The JSON schema of the answer, as JSON; None where any text will do."""
        if self.type == "text":
            return None
        return json.dumps(self.json_schema.json_schema if self.json_schema is not None else {"type": "object"})
