"""Chat templates of real models (tests/data/templates), and what each of these models would write."""

from __future__ import annotations

from typing import NamedTuple

PARIS, ROME = '{"city": "Paris"}', '{"city": "Rome"}'
WEATHER, TIME = ("weather", PARIS), ("time", ROME)


class Model(NamedTuple):
    """One template. `special` and `plain`: tokens of its vocabulary; the first ends a text."""

    special: tuple[str, ...]
    plain: tuple[str, ...] = ()
    called: str = ""
    """An answer that calls `WEATHER`, after `thought` where it thinks."""
    thought: str = ""
    calls_again: str = ""
    """What is added to it for `TIME`."""
    told: str = ""
    """What a conversation with that call and its result says of them."""
    opened: bool = False
    """Whether the template begins the thought."""
    answers: str = ""
    """What comes between a thought and an answer."""
    begins: str = ""
    """What an answer begins with that has no thought before it."""
    closed: str = ""
    """What ends the calls, where that is more than an end each."""


def _wide(*words: str) -> str:
    """DeepSeek's special tokens are of wide bars, and of blocks for spaces."""
    return "<\uff5c" + "\u2581".join(words) + "\uff5c>"


def _deepseek_call(name: str, arguments: str) -> str:
    begin, sep, end = _wide("tool", "call", "begin"), _wide("tool", "sep"), _wide("tool", "call", "end")
    return f"{begin}function{sep}{name}\n```json\n{arguments}\n```{end}"


def _glm_call(name: str, city: str) -> str:
    return f"<tool_call>{name}\n<arg_key>city</arg_key>\n<arg_value>{city}</arg_value>\n</tool_call>"


def _kimi_call(name: str, at: int, arguments: str) -> str:
    return f"<|tool_call_begin|>functions.{name}:{at}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"


HERMES = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    '\n<tool_call>\n{"name": "time", "arguments": {"city": "Rome"}}\n</tool_call>',
)
MODELS = {
    "qwen3": Model(
        ("<|im_end|>", "<|im_start|>"), ("<think>", "</think>", "<tool_call>", "</tool_call>"),
        called="<think>\nI had better look.\n</think>\n\n" + HERMES[0],
        thought="I had better look.", answers="\n</think>\n\n", calls_again=HERMES[1],
        told=HERMES[0] + "<|im_end|>\n<|im_start|>user\n<tool_response>\n18 degrees\n</tool_response><|im_end|>",
    ),
    "hermes": Model(
        ("<|im_end|>", "<|im_start|>"), ("<tool_call>", "</tool_call>"), called=HERMES[0], calls_again=HERMES[1],
        told=HERMES[0] + "<|im_end|>\n<|im_start|>user\n<tool_response>\n18 degrees\n</tool_response><|im_end|>",
    ),
    "llama3_1": Model(
        ("<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>"),
        called='{"name": "weather", "parameters": {"city": "Paris"}}',
        calls_again='; {"name": "time", "parameters": {"city": "Rome"}}',
        told='{"name": "weather", "parameters": {"city": "Paris"}}<|eot_id|>'
             '<|start_header_id|>ipython<|end_header_id|>\n\n"18 degrees"<|eot_id|>',
    ),
    "mistral_nemo": Model(
        ("</s>", "<s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
         "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        called='[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}}',
        calls_again=', {"name": "time", "arguments": {"city": "Rome"}, "id": "abcdefgh1"}', closed="]",
        told='[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}, "id": "c0ffee001"}]</s>'
             '[TOOL_RESULTS]{"content": 18 degrees, "call_id": "c0ffee001"}[/TOOL_RESULTS]',
    ),
    "gpt_oss": Model(
        ("<|return|>", "<|call|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>"),
        called="<|channel|>analysis<|message|>I had better look.<|end|><|start|>assistant<|channel|>commentary "
               'to=functions.weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>',
        thought="I had better look.", answers="<|end|><|start|>assistant<|channel|>final<|message|>",
        begins="<|channel|>final<|message|>",
        calls_again='<|start|>assistant to=functions.time<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>',
        told="<|start|>assistant<|channel|>analysis<|message|>I had better look.<|end|>"
             '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"city": "Paris"}<|call|>'
             '<|start|>functions.weather to=assistant<|channel|>commentary<|message|>"18 degrees"<|end|>',
    ),
    "gemma4": Model(
        ("<turn|>", "<|turn>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool>", "<tool|>",
         "<|tool_response>", "<tool_response|>", '<|"|>', "<|think|>", "<bos>"),
        called='<|channel>thought\nI had better look.\n<channel|><|tool_call>call:weather{city:<|"|>Paris<|"|>}'
               "<tool_call|>",
        thought="I had better look.", answers="\n<channel|>",
        calls_again='<|tool_call>call:time{city:<|"|>Rome<|"|>}<tool_call|>',
        told='<|channel>thought\nI had better look.\n<channel|><|tool_call>call:weather{city:<|"|>Paris<|"|>}'
             '<tool_call|><|tool_response>response:weather{value:<|"|>18 degrees<|"|>}<tool_response|>',
    ),
    "deepseek": Model(
        (_wide("end", "of", "sentence"), _wide("begin", "of", "sentence"), _wide("User"), _wide("Assistant")),
        ("<think>", "</think>", *(_wide("tool", *each) for each in (
            ("calls", "begin"), ("calls", "end"), ("call", "begin"), ("call", "end"), ("sep",),
            ("outputs", "begin"), ("outputs", "end"), ("output", "begin"), ("output", "end")))),
        called="I had better look.</think>" + _wide("tool", "calls", "begin") + _deepseek_call("weather", PARIS),
        thought="I had better look.", answers="</think>",
        calls_again="\n" + _deepseek_call("time", ROME), closed=_wide("tool", "calls", "end"),
        told=_wide("Assistant") + _wide("tool", "calls", "begin") + _deepseek_call("weather", PARIS)
             + _wide("tool", "calls", "end") + _wide("end", "of", "sentence") + _wide("tool", "outputs", "begin")
             + _wide("tool", "output", "begin") + "18 degrees" + _wide("tool", "output", "end")
             + _wide("tool", "outputs", "end"),
        opened=True,
    ),
    "phi4": Model(
        ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|/tool|>"),
        ("<|tool_call|>", "<|/tool_call|>", "<|tool_response|>"),
        called='<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}',
        calls_again=', {"name": "time", "arguments": {"city": "Rome"}}', closed="]<|/tool_call|>",
        told='<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}]<|/tool_call|><|end|>'
             "<|tool_response|>18 degrees<|end|>",
    ),
    "granite3": Model(
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
        called='<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}',
        calls_again=', {"name": "time", "arguments": {"city": "Rome"}}', closed="]",
        told='<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}]<|end_of_text|>\n'
             "<|start_of_role|>tool_response<|end_of_role|>18 degrees<|end_of_text|>",
    ),
    "command": Model(
        ("<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>",
         "<|START_THINKING|>", "<|END_THINKING|>", "<|START_ACTION|>", "<|END_ACTION|>", "<|START_RESPONSE|>",
         "<|END_RESPONSE|>", "<|START_TOOL_RESULT|>", "<|END_TOOL_RESULT|>"),
        called="<|START_THINKING|>I had better look.<|END_THINKING|><|START_ACTION|>"
               '[\n  {"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Paris"}}',
        thought="I had better look.", answers="<|END_THINKING|>", begins="<|START_RESPONSE|>",
        calls_again=',\n  {"tool_call_id": "1", "tool_name": "time", "parameters": {"city": "Rome"}}',
        closed="\n]<|END_ACTION|>",
        told='<|START_ACTION|>[{"tool_name": "weather", "parameters": {"city": "Paris"}}]<|END_ACTION|>'
             "<|END_OF_TURN_TOKEN|><|START_TOOL_RESULT|>18 degrees<|END_TOOL_RESULT|>",
    ),
    "nemotron": Model(
        ("<SPECIAL_12>", "<SPECIAL_10>", "<SPECIAL_11>"), ("<think>", "</think>"),
        called="I had better look.\n</think>\n\n"
               '<TOOLCALL>[{"name": "weather", "arguments": {"city": "Paris"}}',
        thought="I had better look.", answers="\n</think>\n\n",
        calls_again=', {"name": "time", "arguments": {"city": "Rome"}}', closed="]</TOOLCALL>",
        told='<TOOLCALL>[{"name": "weather", "arguments": {"city": "Paris"}}]</TOOLCALL><SPECIAL_12>\n'
             "<SPECIAL_11>User\n<TOOL_RESPONSE>[18 degrees]</TOOL_RESPONSE>",
        opened=True,
    ),
    "smollm3": Model(
        ("<|im_end|>", "<|im_start|>"), ("<think>", "</think>", "<tool_call>", "</tool_call>"),
        called="<think>\nI had better look.\n</think>\n" + HERMES[0],
        thought="I had better look.", answers="\n</think>\n", calls_again=HERMES[1],
        told=HERMES[0] + "<|im_end|>\n<|im_start|>user\n18 degrees<|im_end|>",
    ),
    "glm45": Model(
        ("<|user|>", "<|assistant|>", "<|observation|>", "<|system|>", "[gMASK]", "<sop>"),
        ("<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>",
         "</arg_value>"),
        called="<think>I had better look.</think>\n" + _glm_call("weather", "Paris"),
        thought="I had better look.", answers="</think>\n", calls_again="\n" + _glm_call("time", "Rome"),
        told=_glm_call("weather", "Paris") + "<|observation|>\n<tool_response>\n18 degrees\n</tool_response>",
    ),
    "kimi_k2": Model(
        ("<|im_end|>", "<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>"),
        ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>",
         "<|tool_call_argument_begin|>"),
        called="<|tool_calls_section_begin|>" + _kimi_call("weather", 0, PARIS),
        calls_again=_kimi_call("time", 1, ROME), closed="<|tool_calls_section_end|>",
        told="<|tool_calls_section_begin|><|tool_call_begin|>c0ffee001<|tool_call_argument_begin|>" + PARIS
             + "<|tool_call_end|><|tool_calls_section_end|><|im_end|>"
             "<|im_system|>tool<|im_middle|>18 degrees<|im_end|>",
    ),
    "gemma3": Model(("<end_of_turn>", "<start_of_turn>", "<bos>")),
}  # fmt: skip
