"""What a model thinks, answers and wants called, told apart in its text."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impetus_backends.errors import RequestError
from impetus_backends.generation.texts.channels import Channels
from impetus_backends.generation.texts.marks import parse_json
from impetus_backends.generation.texts.tool_calls import ToolCalls, forced_schema
from impetus_producer.contract.conversation import CalledFunction, ToolCall
from tests.generation.tokenizer_kinds import fast
from tests.receiver import Receiver

if TYPE_CHECKING:
    from impetus_backends.generation.texts.channels import Said

THINK = ("<think>", "</think>")
HARMONY = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>")
LOOK: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"at": {"$ref": "#/$defs/place"}},
            "required": ["at"],
            "$defs": {"place": {"type": "string"}},
        },
    },
}
STRICT = {"type": "function", "function": LOOK["function"] | {"strict": True}}


def tokenizer(*added: str, parser: str | None = None) -> Any:
    from importlib import import_module

    from mlx_lm.tokenizer_utils import TokenizerWrapper

    made = fast("byte-level BPE")
    made.add_tokens(list(added))
    if parser is None:
        return TokenizerWrapper(made)
    module = import_module(f"mlx_lm.tool_parsers.{parser}")
    return TokenizerWrapper(
        made,
        tool_call_start=module.tool_call_start,
        tool_call_end=module.tool_call_end,
        tool_parser=module.parse_tool_call,
    )


HERMES = tokenizer(*THINK, parser="json_tools")
GPT_OSS = tokenizer(*HARMONY)
CASES: dict[str, tuple[Any, bool, str, tuple[str, str, list[str]]]] = {
    "a thought": (HERMES, False, "<think>\nHm.\n</think>\n\nYes.", ("Yes.", "Hm.", [])),
    "a thought that the prompt began": (HERMES, True, "Hm.\n</think>\n\nYes. \n", ("Yes. \n", "Hm.", [])),
    "a thought without an end": (HERMES, True, "Hm", ("", "Hm", [])),
    "no thought": (HERMES, False, "  Yes.\n\nNo. ", ("  Yes.\n\nNo. ", "", [])),
    "a call": (HERMES, False, 'Let me see.\n<tool_call>\n{"name": "a"}\n</tool_call>',
               ("Let me see.", "", ['\n{"name": "a"}\n'])),
    "two calls after a thought": (HERMES, False, "<think>x</think><tool_call>1</tool_call>\n<tool_call>2</tool_call>\n",
                                  ("", "x", ["1", "2"])),
    "a call that is not closed": (HERMES, False, "<tool_call>1", ("", "", ["1"])),
    "a mark among words": (HERMES, False, "Write <think> a\n</think> b.", ("Write <think> a\n</think> b.", "", [])),
    "a mark among words after a thought": (HERMES, False, "<think>Hm.</think>Write <think> a",
                                           ("Write <think> a", "Hm.", [])),
    "a call among words with a mark": (HERMES, False, "Write <think>.<tool_call>1</tool_call>",
                                       ("Write <think>.", "", ["1"])),
    "two thoughts": (HERMES, False, "<think>a</think>\n<think>b</think>Yes.", ("Yes.", "ab", [])),
    "half a mark": (HERMES, False, "a <thin", ("a <thin", "", [])),
    "harmony": (GPT_OSS, False, "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>"
                "Yes.<|return|>", ("Yes.", "Hm.", [])),
    "harmony, of a form": (GPT_OSS, False, '<|channel|>final <|constrain|>json<|message|>{"a": 1}<|return|>',
                           ('{"a": 1}', "", [])),
    "harmony, a call in the header": (GPT_OSS, False, "<|channel|>commentary<|message|>Let me see.<|end|><|start|>"
                                      "assistant to=functions.look<|channel|>commentary json<|message|>{}<|call|>",
                                      ("Let me see.", "", ["look<|channel|>commentary json<|message|>{}"])),
    "harmony, a channel that nobody knows": (GPT_OSS, False, "<|start|>assistant<|channel|>other<|message|>Yes.<|end|>",
                                             ("Yes.", "", [])),
    "harmony, words like a mark": (GPT_OSS, False, "<|channel|>final<|message|>Send it to=functions.look now.",
                                   ("Send it to=functions.look now.", "", [])),
    "harmony, a call": (GPT_OSS, False, "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>"
                        'commentary to=functions.look <|constrain|>json<|message|>{"at": "x"}<|call|>',
                        ("", "Hm.", ['look <|constrain|>json<|message|>{"at": "x"}'])),
}  # fmt: skip


def told(said: Said) -> tuple[str, str, list[str]]:
    return said.text, said.reasoning, said.calls


@pytest.mark.parametrize("case", CASES)
def test_thoughts_answers_and_calls_are_told_apart(case: str) -> None:
    model, thinking, text, wanted = CASES[case]
    splitter = Channels(model).splitter(thinking=thinking, calls=True)
    assert splitter is not None
    assert told(splitter.whole(text, complete=True)) == wanted


def test_of_an_answer_that_max_tokens_cuts_in_a_header_nothing_of_the_header_is_text() -> None:
    splitter = Channels(GPT_OSS).splitter(thinking=False, calls=True)
    assert splitter is not None
    for cut in ("<|channel|>", "<|channel|>analysis", "<|channel|>final", "<|channel|>commentary to=func"):
        assert told(splitter.whole(cut, complete=False)) == ("", "", [])
    assert told(splitter.whole("<|channel|>final<|message|>a < b <", complete=False))[0] == "a < b <"


@pytest.mark.parametrize("case", [case for case in CASES if "<|" in CASES[case][2]] + ["gemma"])
@pytest.mark.parametrize("calls", [True, False])
def test_a_mark_that_is_cut_short_is_no_text(case: str, calls: bool) -> None:
    gemma = tokenizer("<|channel>", "<channel|>"), False, "<|channel>thought\nHm.\n<channel|>Yes.", ()
    model, thinking, text, _ = gemma if case == "gemma" else CASES[case]
    splitter = Channels(model).splitter(thinking=thinking, calls=calls)
    assert splitter is not None
    tokens = model.encode(text, add_special_tokens=False)
    for count in range(len(tokens)):
        said = splitter.whole(model.decode(tokens[:count]), complete=False)
        answers = ("Yes.", "Let me see.", "Send it to=functions.look now.", '{"a": 1}')
        assert any(answer.startswith(said.text) for answer in answers)
        assert "Hm.".startswith(said.reasoning)


@given(data=st.data(), case=st.sampled_from(sorted(CASES)))
def test_what_is_said_in_pieces_is_a_beginning_of_what_is_said(data: st.DataObject, case: str) -> None:
    model, thinking, text, (answer, thought, calls) = CASES[case]
    splitter = Channels(model).splitter(thinking=thinking, calls=True)
    assert splitter is not None
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [splitter.feed(text[begin:end]) for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert answer.startswith("".join(piece.text for piece in pieces))
    assert thought.startswith("".join(piece.reasoning for piece in pieces))
    assert calls[: len([call for piece in pieces for call in piece.calls])] == [c for p in pieces for c in p.calls]


def test_a_model_without_marks_is_read_as_it_is() -> None:
    channels = Channels(tokenizer())
    assert channels.splitter(thinking=False, calls=True) is None
    assert not channels.opens_with_thought("<think>")
    assert Channels(HERMES).opens_with_thought("<|im_start|>assistant\n<think>\n")


@pytest.mark.parametrize(
    ("parser", "written"),
    [
        ("json_tools", '{"name": "look", "arguments": {"at": "x"}}'),
        ("mistral", 'look[ARGS]{"at": "x"}'),
        ("qwen3_coder", "<function=look>\n<parameter=at>\nx\n</parameter>\n</function>"),
        ("gemma4", 'call:look{at:<|"|>x<|"|>}'),
        ("function_gemma", "call:look{at:<escape>x<escape>}"),
        ("pythonic", '[look(at="x")]'),
    ],
)
def test_a_call_is_read_as_its_family_writes_it(parser: str, written: str) -> None:
    (call,) = ToolCalls(tokenizer(parser=parser).tool_parser, [LOOK]).of([written]) or [None]
    assert call is not None
    assert (call.name, json.loads(call.arguments)) == ("look", {"at": "x"})
    assert call.id


def test_a_call_of_harmony_is_read() -> None:
    (call,) = ToolCalls(Channels(GPT_OSS).parse_calls, [LOOK]).of(['look <|constrain|>json<|message|>{"at": "x"}']) or [
        None
    ]
    assert call is not None
    assert (call.name, json.loads(call.arguments)) == ("look", {"at": "x"})


@pytest.mark.parametrize(
    "written",
    [
        "{",
        '{"name": "look", "arguments": {"at": NaN}}',
        '{"name": "other", "arguments": {}}',
        '{"name": "look", "arguments": 1}',
        "[]",
    ],
)
def test_what_is_no_call_stays_text(written: str) -> None:
    assert ToolCalls(HERMES.tool_parser, [LOOK]).of([written]) in (None, ())


def test_a_strict_tool_is_called_by_its_schema_or_the_answer_fails() -> None:
    calls = ToolCalls(HERMES.tool_parser, [STRICT])
    assert calls.of(['{"name": "look", "arguments": {"at": "x"}}'])
    with pytest.raises(
        RequestError, match=r"called look with arguments that are not of its schema: 'at' is a required"
    ):
        calls.of(['{"name": "look", "arguments": {}}'])


def test_nothing_is_fetched_that_a_schema_of_a_tool_refers_to() -> None:
    receiver = Receiver()
    for schema in ({"$ref": receiver.url("/schema.json")}, {"$schema": receiver.url("/"), "$ref": "other.json"}):
        function = {"name": "look", "strict": True, "parameters": schema}
        calls = ToolCalls(parse_json, [{"type": "function", "function": function}])
        with pytest.raises(RequestError, match="its schema cannot be looked at"):
            calls.of(['{"name": "look", "arguments": {}}'])
    receiver.close()
    assert receiver.heard == []


def test_a_pattern_that_takes_for_ever_fails_its_call_and_holds_up_the_engine_no_longer_than_a_template_may() -> None:
    schema = {"type": "object", "properties": {"at": {"type": "string", "pattern": "^(a+)+$"}}}
    function = {"name": "look", "strict": True, "parameters": schema}
    calls = ToolCalls(parse_json, [{"type": "function", "function": function}])
    before = time.process_time()
    with pytest.raises(RequestError, match="took more than 2 s of computing"):
        calls.of([json.dumps({"name": "look", "arguments": {"at": "a" * 60 + "b"}})])
    assert time.process_time() - before < 20, "it would have been years"


def test_a_parser_that_takes_for_ever_has_found_no_call() -> None:
    def parse(text: str, tools: object) -> None:
        re.fullmatch("(a+)+", text)

    assert ToolCalls(parse, [LOOK]).of(["a" * 60 + "b"]) is None


@pytest.mark.parametrize("call_id", [r"\ud83e", "x" * 300, r"a\nb", ""])
def test_what_a_model_writes_of_a_call_is_what_a_result_can_hold(call_id: str) -> None:
    """Half a surrogate pair is no text, and an id has its length."""
    written = r'{"name": "look", "arguments": {"at": "\ud83e é"}, "id": "' + call_id + '"}'
    (call,) = ToolCalls(parse_json, [LOOK]).of([written]) or [None]
    assert call is not None
    assert json.loads(call.arguments) == {"at": "\ud83e é"}
    ToolCall(id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))
    assert call.id.isprintable()


def test_a_call_without_arguments_may_say_so_by_null() -> None:
    (call,) = ToolCalls(parse_json, [LOOK]).of(['{"name": "look", "arguments": null}']) or [None]
    assert call is not None
    assert call.arguments == "{}"


def test_a_call_that_has_to_be_made_is_of_a_schema_whose_references_still_lead_somewhere() -> None:
    from jsonschema import Draft202012Validator

    other = {"type": "function", "function": {"name": "other"}}
    for choice, named in (("required", {"look", "other"}), ("=look", {"look"})):
        schema = json.loads(forced_schema([LOOK, other], choice))
        validator = Draft202012Validator(schema)
        assert set(schema["$defs"]) == named
        assert validator.is_valid({"name": "look", "arguments": {"at": "x"}})
        assert not validator.is_valid({"name": "look", "arguments": {"at": 1}})
        assert validator.is_valid({"name": "other", "arguments": {}}) == ("other" in named)
