"""Calls of tools: out of what a model writes, by mlx-lm's parser for its family, or out of JSON it was kept to."""

from __future__ import annotations

import ast
import json
import re
import uuid
from typing import TYPE_CHECKING, Any

from ...errors import RequestError
from ...protocol import Call
from .time_limit import MOST_S, EndlessError, time_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Parse = Callable[..., Any]
    """What stands between the marks of a call, and all tools, to a call or several: `name` and `arguments`."""

_HARMONY_CALL = re.compile(
    r"\s*([\w.-]+)\s*(?:<\|channel\|>commentary)?\s*(?:<\|constrain\|>)?\s*(?:json)?\s*<\|message\|>(.*)", re.DOTALL
)
_ID_CHARACTERS = 9
"""Of a call's id: templates of Mistral's models refuse conversations with ids of any other length."""
_MOST_ID_CHARACTERS = 256
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_ANSWER = "=answer"
"""No tool is called so."""
_OF_JSON = {"true": True, "false": False, "null": None}
_NEARLY_CALL = re.compile(r"\s*(?P<name>[\w.-]+)\((?P<arguments>.*?)\)\s*(?:,(?=\s*[\w.-]+\()|$)", re.DOTALL)
_NEARLY_ARGUMENT = re.compile(
    r"\s*(?P<key>\w+)\s*=\s*(?:(?P<quote>['\"])(?P<text>(?:(?!(?P=quote)\s*[,)]).)*)(?P=quote)|(?P<other>[^'\"].*?))"
    r"\s*(?:,(?=\s*\w+\s*=)|$)",
    re.DOTALL,
)
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}


class ToolCalls:
    """The calls of one request. `parse`: how the model writes them, where that is known."""

    def __init__(self, parse: Parse | None, tools: Sequence[Mapping[str, Any]]) -> None:
        self._parse = parse
        self._tools = tools
        self._by_name: dict[str, Mapping[str, Any]] = {tool["function"]["name"]: tool["function"] for tool in tools}

    def of(self, written: Iterable[str]) -> tuple[Call, ...] | None:
        """The calls that stand in these texts; None where one of them is none, so that they are text like any other.

        Raises `RequestError` where a tool is strict and what it is called with is not of its schema.
        """
        calls: list[Call] = []
        for text in written:
            try:
                assert self._parse is not None
                with time_limit():
                    found = self._parse(text, list(self._tools))
                calls += [self._call(each) for each in (found if isinstance(found, list) else [found])]
            except RequestError:
                raise
            except Exception:  # noqa: BLE001 - a parser raises what it likes about a text that is no call
                return None
        return tuple(calls)

    def of_json(self, text: str) -> tuple[Call, ...]:
        """The call that an answer is which was kept to `forced_schema`; none where a stop string has cut it short,
        or a number is none that JSON has."""
        try:
            return (self._call(json.loads(text)),)
        except (ValueError, RecursionError):
            return ()

    def _call(self, said: Mapping[str, Any]) -> Call:
        name, arguments = said["name"], said.get("arguments", said.get("parameters"))
        if isinstance(arguments, str) or arguments is None:
            arguments = json.loads(arguments or "{}")
        if name not in self._by_name or not isinstance(arguments, dict):
            raise ValueError("no call of a tool that there is")
        function = self._by_name[name]
        if function.get("strict") and (fault := _fault(function.get("parameters") or _NO_ARGUMENTS, arguments)):
            raise RequestError(f"the model called {name} with arguments that are not of its schema: {fault}")
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        if _HALF_CHARACTER.search(written):
            written = json.dumps(arguments)  # as text there is none, but JSON spells it
        call_id = str(said.get("id") or "")
        if not (0 < len(call_id) <= _MOST_ID_CHARACTERS and call_id.isprintable()):
            call_id = uuid.uuid4().hex[:_ID_CHARACTERS]
        return Call(name, written, call_id)


def parse_harmony(text: str, tools: object) -> dict[str, Any]:
    """A call as gpt-oss writes it: the tool's name, and after marks its arguments."""
    if (found := _HARMONY_CALL.fullmatch(text)) is None:
        raise ValueError("no call")
    return {"name": found[1], "arguments": json.loads(found[2] or "{}")}


def parse_bare(text: str, tools: object) -> list[dict[str, Any]]:
    """Calls as Llama 3 writes them: objects of JSON with `name` and `parameters`, and semicolons between."""
    decoder, calls = json.JSONDecoder(), []
    while text := text.strip().removeprefix("<|python_tag|>").lstrip("; \n"):
        call, end = decoder.raw_decode(text)
        calls.append(call)
        text = text[end:]
    return calls


def parse_pythonic(text: str, tools: object) -> list[dict[str, Any]]:
    """Calls as Llama 4 writes them, a list of Python's, in which JSON's words may stand. mlx-lm's parser makes a call
    of other text as well, and leaves out what it cannot read."""
    written = _python(text)
    if not isinstance(written, ast.List):
        raise ValueError("no list of calls")
    return [_of_python(each) for each in written.elts]


def parse_nearly_pythonic(text: str, tools: object) -> list[dict[str, Any]]:
    """Calls as LFM2.5 writes them: as Python's, but that a text may hold line breaks, and the quotes around it."""
    try:
        return parse_pythonic(text, tools)
    except (SyntaxError, ValueError):
        calls = _tiles(_NEARLY_CALL, text.strip().removeprefix("[").removesuffix("]"))
    return [{"name": each["name"], "arguments": _nearly_arguments(each["arguments"])} for each in calls]


def _nearly_arguments(text: str) -> dict[str, Any]:
    found = _tiles(_NEARLY_ARGUMENT, text)
    return {each["key"]: each["text"] if each["quote"] else _value(_python(each["other"])) for each in found}


def _python(text: str) -> ast.expr:
    return ast.parse(text.strip(), mode="eval").body


def _of_python(call: ast.expr) -> dict[str, Any]:
    if not isinstance(call, ast.Call) or call.args or any(each.arg is None for each in call.keywords):
        raise ValueError("no call of arguments by name")
    return {"name": ast.unparse(call.func), "arguments": {str(each.arg): _value(each.value) for each in call.keywords}}


def _value(written: ast.expr) -> Any:
    return ast.literal_eval(_Literals().visit(written))


class _Literals(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_OF_JSON[node.id])


def _tiles(part: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """The parts that follow one another from its beginning to its end."""
    found, at = [], 0
    while text[at:].strip():
        if (one := part.match(text, at)) is None:
            raise ValueError("no calls")
        found.append(one)
        at = one.end()
    return found


def parse_gemma(text: str, tools: object) -> Any:
    """Calls as FunctionGemma writes them, by mlx-lm's parser for Gemma 4, whose marks of texts differ alone: that for
    FunctionGemma ends at the first brace, and takes half of an object for the whole."""
    from mlx_lm.tool_parsers import gemma4

    return gemma4.parse_tool_call(text.replace("<escape>", '<|"|>'))


def forced_schema(tools: Sequence[Mapping[str, Any]], choice: str) -> str:
    """The JSON schema of one call of one of these tools; `choice`: `required`, or `=` and a name."""
    return _schema_of(tools, choice, "arguments")


def schema_with_calls(tools: Sequence[Mapping[str, Any]], schema: str) -> str:
    """The JSON schema of either an answer of this one or one call, as `parse_bare` reads it."""
    return _schema_of(tools, "required", "parameters", json.loads(schema))


def _schema_of(tools: Sequence[Mapping[str, Any]], choice: str, arguments: str, answer: Any = None) -> str:
    wanted = [tool["function"] for tool in tools if choice in ("required", f"={tool['function']['name']}")]
    definitions = {each["name"]: _moved(each.get("parameters") or _NO_ARGUMENTS, each["name"]) for each in wanted}
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, arguments: {"$ref": f"#/$defs/{_escaped(name)}"}},
            "required": ["name", arguments],
            "additionalProperties": False,
        }
        for name in definitions
    ]
    if answer is not None:
        definitions[_ANSWER] = _moved(answer, _ANSWER)
        calls.append({"$ref": f"#/$defs/{_ANSWER}"})
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return json.dumps(schema | {"$defs": definitions})


def _moved(part: Any, name: str) -> Any:
    """A schema that has become a definition of another: what it refers to in itself is now further down."""
    if isinstance(part, list):
        return [_moved(each, name) for each in part]
    if not isinstance(part, dict):
        return part
    moved = {key: _moved(value, name) for key, value in part.items()}
    reference = part.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = f"#/$defs/{_escaped(name)}{reference[1:]}"
    return moved


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _fault(schema: Mapping[str, Any], value: Any) -> str:
    """Why a value is not of a schema; empty where it is. What the schema refers to is in it: nothing is fetched."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing.jsonschema import EMPTY_REGISTRY

    try:
        with time_limit():
            Draft202012Validator.check_schema(dict(schema))
            validator = Draft202012Validator(dict(schema), registry=EMPTY_REGISTRY)
            error = next(validator.iter_errors(value), None)
    except SchemaError as broken:
        return f"its schema is none ({broken.message:.200})"
    except EndlessError:
        return f"to hold them against it took more than {MOST_S} s of computing"
    except Exception as unresolved:  # noqa: BLE001 - references that lead nowhere, patterns that are none
        return f"its schema cannot be looked at ({unresolved!s:.200})"
    return "" if error is None else f"{error.message:.200}"
