"""Calls of tools in whatever form a model's chat template writes them: what it writes is what is read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.errors import RequestError
from impetus_backends.generation.texts.channels import Channels
from impetus_backends.generation.texts.conversations import Conversations
from impetus_backends.generation.texts.tool_calls import ToolCalls
from impetus_backends.generation.texts.typed_values import of_schema
from tests.generation.template_models import MODELS
from tests.generation.tokenizer_kinds import fast
from tests.paths import DATA

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from impetus_backends.generation.texts.channels import Said
    from impetus_backends.protocol import Call

TEMPLATE = (
    "{%- for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}{% for m in messages %}<|{{ m.role }}|>"
    "{{ m.content }}{% if m.tool_calls %}CALLS{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
EACH = "{% for c in m.tool_calls %}{% set f = c.function %}CALL{{ SEP if not loop.last }}{% endfor %}"


def form(call: str, *, opens: str = "", closes: str = "", sep: str = "") -> str:
    return opens + EACH.replace("CALL", call).replace("SEP", repr(sep)) + closes


def parameters(one: str) -> str:
    return "{% for key, value in f.arguments.items() %}" + one + "{% endfor %}"


VALUE = "{{ value if value is string else value | tojson }}"
JSON = "{{ f.arguments | tojson }}"
FORMS = {
    "Hermes": form('<tool_call>\n{"name": "{{ f.name }}", "arguments": ' + JSON + "}\n</tool_call>", sep="\n"),
    "Qwen3-Coder": form(
        "<tool_call>\n<function={{ f.name }}>\n"
        + parameters("<parameter={{ key }}>\n" + VALUE + "\n</parameter>\n")
        + "</function>\n</tool_call>",
        sep="\n",
    ),
    "GLM-4.5": form(
        "<tool_call>{{ f.name }}\n"
        + parameters("<arg_key>{{ key }}</arg_key>\n<arg_value>" + VALUE + "</arg_value>\n")
        + "</tool_call>",
        sep="\n",
    ),
    "LongCat": form(
        "<longcat_tool_call>{{ f.name }}\n"
        + parameters(
            "<longcat_arg_key>{{ key }}</longcat_arg_key>\n<longcat_arg_value>" + VALUE + "</longcat_arg_value>\n"
        )
        + "</longcat_tool_call>",
        sep="\n",
    ),
    "FunctionGemma": "{%- macro pairs(of) %}{% for key in of %}{{ key }}:{{ one(of[key]) }}{{ ',' if not loop.last }}"
    "{% endfor %}{% endmacro %}{% macro one(value) %}{% if value is string %}<escape>{{ value }}<escape>"
    "{% elif value is mapping %}{{ '{' }}{{ pairs(value) }}{{ '}' }}{% elif value is iterable %}["
    "{% for each in value %}"
    "{{ one(each) }}{{ ',' if not loop.last }}{% endfor %}]{% else %}{{ value | tojson }}{% endif %}{% endmacro %}"
    + form("<start_function_call>call:{{ f.name }}{{ '{' }}{{ pairs(f.arguments) }}{{ '}' }}<end_function_call>"),
    "MiniMax-M2": form(
        '<invoke name="{{ f.name }}">\n'
        + parameters('<parameter name="{{ key }}">' + VALUE + "</parameter>\n")
        + "</invoke>\n",
        opens="<minimax:tool_call>\n",
        closes="</minimax:tool_call>",
    ),
    "Seed-OSS": form(
        "<seed:tool_call>\n<function={{ f.name }}>\n"
        + parameters("<parameter={{ key }}>" + VALUE + "</parameter>\n")
        + "</function>\n</seed:tool_call>",
        sep="\n",
    ),
    "DeepSeek-V3.2": form(
        '<|DSML|invoke name="{{ f.name }}">\n'
        + parameters(
            '<|DSML|parameter name="{{ key }}" string="{{ "true" if value is string else "false" }}">'
            + VALUE
            + "</|DSML|parameter>\n"
        )
        + "</|DSML|invoke>\n",
        opens="<|DSML|function_calls>\n",
        closes="</|DSML|function_calls>",
    ),
    "Apertus": form('{"{{ f.name }}": ' + JSON + "}", opens="<|tools_prefix|>[", closes="]<|tools_suffix|>", sep=", "),
    "Apriel, which speaks of other marks, too": form(
        "{{ f | tojson }}",
        opens="{# in <tool_call></tool_call>: tool_call.name #}\n<tool_calls>[",
        closes="]</tool_calls>",
        sep=", ",
    ),
    "Solar": form(
        "<|tool_call:begin|>{{ c.id }}<|tool_call:name|>{{ f.name }}<|tool_call:args|>" + JSON + "<|tool_call:end|>",
        opens="<|tool_calls|>",
    ),
    "MiniMax-M1": form(
        '{"name": "{{ f.name }}", "arguments": ' + JSON + "}\n", opens="<tool_calls>\n", closes="</tool_calls>"
    ),
    "Mistral Small 3.2": form("[TOOL_CALLS]{{ f.name }}[CALL_ID]{{ c.id }}[ARGS]" + JSON),
    "Functionary 3.1": form("<function={{ f.name }}>" + JSON + "</function>"),
    "GigaChat 3.1": form('<|function_call|>{"name": "{{ f.name }}", "arguments": ' + JSON + "}", sep="\n"),
    "OpenAI's own": form(
        '{"type": "function", "function": {"name": "{{ f.name }}", "arguments": ' + JSON + "}}",
        opens="<calls>[",
        closes="]</calls>",
        sep=", ",
    ),
    "nothing between calls": form('{"name": "{{ f.name }}", "arguments": ' + JSON + "}", opens="<calls>[", closes="]"),
    "xLAM": form('{"name": "{{ f.name }}", "arguments": ' + JSON + "}", opens="[", closes="]", sep=", "),
    "Llama 4, of JSON": form('{"name": "{{ f.name }}", "parameters": ' + JSON + "}"),
    "Llama 4, pythonic": form(
        "{{ f.name }}({% for key, value in f.arguments.items() %}{{ key }}={{ value | tojson }}"
        "{{ ', ' if not loop.last }}{% endfor %})",
        opens="[",
        closes="]",
        sep=", ",
    ),
    "GigaChat 3": form(
        '{"name": "{{ f.name }}", "arguments": ' + JSON + "}", opens="<|end|>\n\nfunction call<|assistant|>\n", sep="\n"
    ),
    "FireFunction": form(
        '{"name": "{{ f.name }}", "arguments": ' + JSON + "}", opens=" functools[", closes="]", sep=", "
    ),
    "Command-R+": form(
        '    {\n        "tool_name": "{{ f.name }}",\n        "parameters": ' + JSON + "\n    }",
        opens="Action: ```json\n[\n",
        closes="\n]```",
        sep=",\n",
    ),
    "LFM2.5": form(
        "{{ f.name }}({% for key, value in f.arguments.items() %}{{ key }}={% if value is string %}'{{ value }}'"
        "{% elif value is mapping %}{{ value | tojson }}{% else %}{{ value }}{% endif %}{{ ', ' if not loop.last }}"
        "{% endfor %})",
        opens="<|tool_call_start|>[",
        closes="]<|tool_call_end|>",
        sep=", ",
    ),
}
BARE = {"xLAM", "Llama 4, of JSON", "Llama 4, pythonic"}
KINDS = {
    "text": "string", "code": "string", "null": "string", "digits": "string", "truth": "string", "count": "integer",
    "ratio": "number", "on": "boolean", "list": "array", "deep": "object",
}  # fmt: skip
PROPERTIES = {key: {"type": kind, "description": "Some."} for key, kind in KINDS.items()} | {"any": {}}
SCHEMA = {"type": "object", "properties": PROPERTIES}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Looks.", "parameters": SCHEMA}}
    for name in ("look", "look_up", "go-to", "go")
]
ARGUMENTS: list[dict[str, Any]] = [
    {"text": "Paris"},
    {},
    {"text": 'say "hi", it\'s \\ {x} [y] </b> & Zürich 北京 🙂'},
    {"code": "  def f(x):\n    return x < 3\n\n"},
    {"null": "null", "digits": "007", "truth": "true"},
    {"text": "", "count": -3, "ratio": 2.5, "on": False},
    {"count": 12345678901234567890},
    {"list": ["a, b", 1, None], "deep": {"a": [{"b": "c: d"}], "t": True}},
    {"any": 5},
]


def tokenizer(template: str, *added: str) -> Any:
    """As mlx-lm makes it of a folder with that template."""
    from importlib import import_module

    from mlx_lm import tokenizer_utils

    made = fast("byte-level BPE")
    made.chat_template = template
    made.add_tokens(list(added))
    kind = tokenizer_utils._infer_tool_parser(made)
    if kind is None:
        return tokenizer_utils.TokenizerWrapper(made)
    module = import_module(f"mlx_lm.tool_parsers.{kind}")
    return tokenizer_utils.TokenizerWrapper(
        made,
        tool_call_start=module.tool_call_start,
        tool_call_end=module.tool_call_end,
        tool_parser=module.parse_tool_call,
    )


def of_form(name: str) -> Any:
    return tokenizer(TEMPLATE.replace("CALLS", FORMS[name]))


def written(model: Any, *calls: tuple[str, Mapping[str, Any]], of_call: str = "abcdefgh1") -> str:
    made = [
        {"id": of_call, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}
        for name, arguments in calls
    ]
    return Conversations(model).with_calls(made, TOOLS)


def read(model: Any, text: str, *, complete: bool = True) -> tuple[Said, Sequence[Call] | None, str]:
    """What the whole says, its calls, and the text that is told while it comes letter by letter."""
    channels = Channels(model)
    splitter = channels.splitter(thinking=False, calls=True)
    assert splitter is not None
    said = splitter.whole(text, complete=complete)
    calls = ToolCalls(channels.parse_calls, TOOLS).of(said.calls)
    if calls is None:
        said = splitter.whole(text, complete=True, calls=False)
    return said, calls, "".join(splitter.feed(letter).text for letter in text)


def plain(calls: Sequence[Call] | None) -> list[tuple[str, dict[str, Any]]]:
    return [(each.name, json.loads(each.arguments)) for each in calls or ()]


@pytest.mark.parametrize("name", FORMS)
def test_calls_come_back_as_they_were_from_what_the_template_makes_of_them(name: str) -> None:
    model = of_form(name)
    for arguments in ARGUMENTS:
        for wanted in ([("look", arguments)], [("look_up", arguments), ("go-to", {"text": "x", "count": 2})]):
            if "pythonic" in name:  # where names are those of functions
                wanted = [("go" if tool == "go-to" else tool, given) for tool, given in wanted]
            said, calls, told = read(model, written(model, *wanted))
            assert (plain(calls), said.text, told) == (wanted, "", "")


@pytest.mark.parametrize("name", sorted(FORMS.keys() - BARE))
def test_words_before_a_call_are_text_and_are_told_before_it(name: str) -> None:
    model = of_form(name)
    said, calls, told = read(model, "Let me see.\n" + written(model, ("look", {"text": "x"})))
    assert (plain(calls), said.text, told) == ([("look", {"text": "x"})], "Let me see.", "Let me see.")


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("fault", ["a tool that there is not", "a cut", "words within"])
def test_of_what_is_no_call_nothing_is_lost(name: str, fault: str) -> None:
    model = of_form(name)
    text = written(model, ("look", {"text": "Paris"}), ("look_up", {"text": "Rome"}))
    text = {
        "a tool that there is not": text.replace("look_up", "look_down"),
        "a cut": text[: text.index("Rome")],
        "words within": text.replace("look_up", 'and "then'),
    }[fault]
    said, calls, told = read(model, text)
    assert (calls, said.text) == (None, text)
    assert text.startswith(told)


@pytest.mark.parametrize("name", FORMS)
def test_of_calls_that_max_tokens_cuts_those_that_are_whole_are_calls(name: str) -> None:
    model = of_form(name)
    text = written(model, ("look", {"text": "Paris"}), ("look_up", {"text": "Rome"}))
    said, calls, told = read(model, text[: text.index("Rome")], complete=False)
    assert plain(calls) in ([], [("look", {"text": "Paris"})])
    assert told == ""
    assert said.text == "" or name in BARE


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"gemma3"}))
def test_what_real_templates_write_is_read(name: str) -> None:
    if name == "smollm3":
        pytest.skip("its template writes no calls")
    model = tokenizer((DATA / "templates" / f"{name}.jinja").read_text(), *MODELS[name].special, *MODELS[name].plain)
    for arguments in ARGUMENTS[:-1]:
        if name == "gemma4" and "deep" in arguments:
            continue  # it writes null as None
        text = written(model, ("look", arguments), of_call="functions.look:0" if name == "kimi_k2" else "abcdefgh1")
        for ends in (MODELS[name].special[0], "<|tool_response>"):
            text = text.partition(ends)[0]
        said, calls, told = read(model, text)
        assert (plain(calls), said.text, told) == ([("look", arguments)], "", ""), arguments


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("look(text='it's fine')", {"text": "it's fine"}),
        ("look(text='say \"hi\", it's', count=3)", {"text": 'say "hi", it\'s', "count": 3}),
        ("look(text='a, count=3')", {"text": "a, count=3"}),
        ("look(on=true, null=null)", {"on": True, "null": None}),
        ("look('Paris')", None),
        ("look(text=Paris())", None),
        ("look(text='Paris'), and more", None),
    ],
)
def test_calls_that_are_nearly_of_python_are_read_whole_or_not_at_all(
    call: str, arguments: dict[str, Any] | None
) -> None:
    text = f"<|tool_call_start|>[{call}]<|tool_call_end|>"
    said, calls, _ = read(of_form("LFM2.5"), text)
    assert (plain(calls), said.text) == (([("look", arguments)], "") if arguments else ([], text))


@pytest.mark.parametrize("name", sorted(BARE))
def test_beside_calls_that_need_no_mark_no_answer_can_be_kept_to_a_schema(name: str) -> None:
    with pytest.raises(RequestError, match="response_format: this model writes calls of tools without a mark"):
        Channels(of_form(name)).or_calls(lambda: None, None)  # type: ignore[arg-type, return-value]


def test_a_form_that_nothing_here_reads_is_no_form_that_is_known() -> None:
    backwards = form("<tool_call>{{ f.name }}:" + parameters(" {{ value }} as {{ key }}") + "</tool_call>")
    model = tokenizer(TEMPLATE.replace("CALLS", backwards) + "{# tool_call.name #}")
    assert Channels(model).parse_calls is None


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("5", {"type": "string"}, "5"),
        ("5", {"type": ["string", "null"]}, "5"),
        ("null", {"type": ["string", "null"]}, None),
        ("5", {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/count"}]}, 5),
        ("5", {"enum": ["5", "6"]}, "5"),
        ("5", {"enum": [5, 6]}, 5),
        ("True", {"type": "boolean"}, True),
        ("{'a': None}", {"type": "object"}, {"a": None}),
        ("1", {"type": "boolean"}, "1"),
        ("true", {"type": "integer"}, "true"),
        ("NaN", {"type": "number"}, "NaN"),
        ("5", {}, 5),
        ("five", {}, "five"),
        ("5", {"$ref": "#/$defs/itself"}, 5),
    ],
)
def test_bare_text_is_what_a_schema_says_that_it_is(text: str, schema: Mapping[str, Any], value: Any) -> None:
    definitions = {"count": {"type": "integer"}, "itself": {"$ref": "#/$defs/itself"}}
    assert of_schema(text, {"properties": {"key": schema}, "$defs": definitions}, "key") == value
