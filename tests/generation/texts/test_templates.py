"""Tools and thoughts by the chat templates of real models (tests/data/templates), with a model that knows what
each of them would say by heart."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.errors import RequestError
from impetus_backends.generation.models.loader import load
from impetus_backends.generation.texts.conversations import Conversations
from impetus_backends.protocol import Generated, GenerationWork, Progress, Rejected
from tests.generation.by_heart import SaysByHeart, small
from tests.generation.conftest import turns
from tests.generation.template_models import MODELS, TIME, WEATHER
from tests.paths import DATA

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from impetus_backends.generation.engine import GenerationEngine
    from impetus_backends.generation.models.loader import LoadedModel
    from impetus_backends.protocol import Answer

pytestmark = pytest.mark.system
TEMPLATES = DATA / "templates"
PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = tuple(
    {"type": "function", "function": {"name": name, "description": f"Knows the {name}.", "parameters": PLACE}}
    for name in ("weather", "time")
)
CALLING = sorted(MODELS.keys() - {"gemma3"})
SCHEMA = json.dumps(
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
)


@pytest.fixture(scope="session")
def of_template(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """The tiny model with the template and the special tokens of a real one, read from a folder as that one is."""

    @cache
    def make(name: str) -> LoadedModel:
        from tokenizers import AddedToken, Tokenizer

        model = MODELS[name]
        folder = tmp_path_factory.mktemp("template") / name
        shutil.copytree(tiny_folder, folder)
        shutil.copy(TEMPLATES / f"{name}.jinja", folder / "chat_template.jinja")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in model.special])
        tokenizer.add_tokens([AddedToken(each, special=False, normalized=False) for each in model.plain])
        tokenizer.save(str(folder / "tokenizer.json"))
        ends = [tokenizer.token_to_id(each) for each in model.special[:2] if each in (model.special[0], "<|call|>")]
        stated = json.loads((folder / "tokenizer_config.json").read_text())
        beginning = next((each for each in model.special if each in ("<s>", "<bos>", "<|begin_of_text|>")), None)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
        stated |= {"eos_token": model.special[0]} | ({"bos_token": beginning} if beginning else {})
        (folder / "tokenizer_config.json").write_text(json.dumps(stated))
        loaded = load(folder)
        loaded.tokenizer.eos_token_ids = set(ends)  # beyond the tiny model's own vocabulary, which `says` makes wider
        return dataclasses.replace(loaded, model=small(loaded.model))

    return make


@pytest.fixture
def says(of_template: Any, make_engine: Any) -> Callable[[str, str], GenerationEngine]:
    def make(name: str, text: str) -> GenerationEngine:
        loaded = of_template(name)
        tokens = [*loaded.tokenizer.encode(text, add_special_tokens=False), loaded.tokenizer.eos_token_id]
        width = len(loaded.tokenizer)
        model = SaysByHeart(loaded.model, tokens, width)
        return make_engine(1, dataclasses.replace(loaded, model=model, vocabulary_size=width))  # type: ignore[no-any-return]

    return make


def ask(engine: GenerationEngine, **changes: Any) -> tuple[Generated, str, str]:
    """What came of it, and the texts and thoughts that were streamed."""
    asked: dict[str, Any] = {"messages": turns(("user", "Weather?")), "tools": TOOLS, "max_tokens": 300} | changes
    engine.admit(GenerationWork(1, None, temperature=0.0, stream=True, **asked))
    events = [event for _ in iter(engine.pending, 0) for event in engine.step()]
    assert not [event for event in events if isinstance(event, Rejected)], events
    (ended,) = [event for event in events if isinstance(event, Generated)]
    told = [event for event in events if isinstance(event, Progress)]
    return ended, "".join(each.text for each in told), "".join(each.reasoning for each in told)


def calls(answer: Answer) -> list[tuple[str, str]]:
    return [(each.name, each.arguments) for each in answer.calls]


def called(name: str, *, twice: bool = False) -> str:
    model = MODELS[name]
    return model.called + (model.calls_again if twice else "") + model.closed


@pytest.mark.parametrize("name", CALLING)
def test_beside_a_schema_a_model_may_call_a_tool_or_answer_by_it(says: Any, name: str) -> None:
    """An agent's request has both (OpenAI Agents, Vercel's SDK, LangChain): it calls first, and answers at last."""
    ended, text, _ = ask(says(name, called(name)), schema=SCHEMA)
    (answer,) = ended.answers
    assert (calls(answer), answer.text, answer.finish_reason) == ([WEATHER], "", "tool_calls")
    assert text == ""
    begins = "<|channel|>final<|message|>" if name == "gpt_oss" else "</think>\n\n" if MODELS[name].opened else ""
    ended, text, _ = ask(says(name, begins + '{"a":7}'), schema=SCHEMA)
    assert (ended.text, ended.finish_reason, calls(ended.answers[0])) == ('{"a":7}', "stop", [])
    assert ended.text.startswith(text)


def test_a_schema_beside_calls_that_are_json_may_refer_to_itself(says: Any) -> None:
    tree = {"$ref": "#/$defs/tree"}
    kept = {"type": "object", "properties": {"a": tree}, "required": [], "additionalProperties": False}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$ref": "#/$defs/tree",
        "$defs": {"tree": kept},
    }
    answered = ask(says("llama3_1", '{"a":{"a":{}}}'), schema=json.dumps(schema))[0].answers[0]
    assert (answered.text, answered.calls) == ('{"a":{"a":{}}}', ())
    assert calls(ask(says("llama3_1", called("llama3_1")), schema=json.dumps(schema))[0].answers[0]) == [WEATHER]


def test_what_begins_as_a_call_beside_a_schema_and_is_none_is_no_answer(says: Any) -> None:
    engine = says("hermes", '<tool_call>\n{"name": "other"}\n</tool_call>')
    asked = GenerationWork(1, None, messages=turns(("user", "x")), tools=TOOLS, schema=SCHEMA, temperature=0.0)
    engine.admit(asked)
    (refused,) = [event for _ in iter(engine.pending, 0) for event in engine.step() if isinstance(event, Rejected)]
    assert refused.message == "the answer is neither JSON of its schema nor a call of a tool"


@pytest.mark.parametrize("name", CALLING)
def test_a_call_is_parsed_and_thoughts_stay_apart(says: Any, name: str) -> None:
    ended, text, thoughts = ask(says(name, called(name)))
    (answer,) = ended.answers
    assert (calls(answer), answer.text, answer.finish_reason) == ([WEATHER], "", "tool_calls")
    assert (answer.reasoning or "", text) == (MODELS[name].thought, "")
    assert MODELS[name].thought.startswith(thoughts)


@pytest.mark.parametrize("name", CALLING)
def test_several_calls_come_with_ids_of_their_own_or_the_first_of_them_alone(says: Any, name: str) -> None:
    (answer,) = ask(says(name, called(name, twice=True)))[0].answers
    # gpt-oss ends its text with each call.
    assert calls(answer) == ([WEATHER] if name == "gpt_oss" else [WEATHER, TIME])
    assert len({each.id for each in answer.calls}) == len(answer.calls)
    (answer,) = ask(says(name, called(name, twice=True)), parallel_tool_calls=False)[0].answers
    assert calls(answer) == [WEATHER]


@pytest.mark.parametrize("name", CALLING)
def test_a_call_of_no_tool_that_there_is_is_text_and_thoughts_stay_apart_all_the_same(says: Any, name: str) -> None:
    no_call = called(name).replace("weather", "nobody")
    more = "" if name == "gpt_oss" else " And more."
    ended, text, thoughts = ask(says(name, no_call + more))
    (answer,) = ended.answers
    assert (answer.calls, answer.reasoning or "", answer.finish_reason) == ((), MODELS[name].thought, "stop")
    assert "nobody" in answer.text
    assert answer.text.endswith(more)
    assert "I had better look" not in answer.text
    assert answer.text.startswith(text)
    assert MODELS[name].thought.startswith(thoughts)


@pytest.mark.parametrize("name", CALLING)
def test_a_call_that_has_to_be_made_and_that_a_stop_string_cuts_short_is_text(says: Any, name: str) -> None:
    forced = '{"name": "weather", "arguments": {"city": "Paris"}}'
    model = MODELS[name]
    before = model.called.partition(model.thought)[0] + model.thought + model.answers if model.thought else ""
    ended, text, _ = ask(says(name, before + forced), tool_choice="required", stop=("Par",))
    (answer,) = ended.answers
    assert "".join(answer.text.split()) == '{"name":"weather","arguments":{"city":"'
    assert (answer.calls, text, answer.finish_reason) == ((), "", "stop")
    assert (answer.reasoning or "") == model.thought


@pytest.mark.parametrize("name", CALLING)
def test_a_call_that_a_stop_string_cuts_short_is_text_and_none_of_what_is_left_of_it(says: Any, name: str) -> None:
    (answer,) = ask(says(name, called(name)), stop=("aris",))[0].answers
    assert (answer.calls, answer.finish_reason, answer.reasoning or "") == ((), "stop", MODELS[name].thought)
    assert answer.text.endswith("P") or name == "gpt_oss"


def test_what_seemed_a_call_and_is_text_holds_no_stop_string(says: Any) -> None:
    (answer,) = ask(says("hermes", "<tool_call>\n</tool_call> and more"), stop=("\n",))[0].answers
    assert (answer.text, answer.calls, answer.finish_reason) == ("<tool_call>", (), "stop")


@pytest.mark.parametrize("name", CALLING)
@pytest.mark.parametrize("choice", ["required", "=weather"])
def test_a_call_that_has_to_be_made_is_made(says: Any, name: str, choice: str) -> None:
    forced = '{"name": "weather", "arguments": {"city": "Paris"}}'
    model = MODELS[name]
    before = model.called.partition(model.thought)[0] + model.thought + model.answers if model.thought else ""
    ended, text, _ = ask(says(name, before + forced), tool_choice=choice)
    (answer,) = ended.answers
    assert (calls(answer), answer.text, text, answer.finish_reason) == ([WEATHER], "", "", "tool_calls")
    assert (answer.reasoning or "") == MODELS[name].thought


@pytest.mark.parametrize("said", ["", "I had better look.", "I had better look. " * 3], ids=["none", "short", "long"])
def test_no_mark_is_cut_in_two_where_thoughts_are_brought_to_an_end(of_template: Any, says: Any, said: str) -> None:
    model, encode = MODELS["gpt_oss"], of_template("gpt_oss").tokenizer.encode
    is_long = len(said) > 20
    opening = f"<|channel|>analysis<|message|>{said}{'' if is_long else model.answers}" if said else model.begins
    # Of the short one while the mark is written that ends it: whom a mark is forced on says the rest all the same.
    least = len(encode(said)) if said and not is_long else 0
    for most_tokens in range(least, least + 24):
        ended, text, thoughts = ask(
            says("gpt_oss", f"{opening}Yes, it is."), tools=(), max_reasoning_tokens=most_tokens, max_tokens=150
        )
        assert "<|" not in ended.text + (ended.answers[0].reasoning or ""), most_tokens
        assert ended.text.startswith(text)
        assert said.startswith(thoughts)


@pytest.mark.parametrize("name", CALLING)
def test_with_no_tool_to_be_called_the_prompt_names_none_and_no_call_is_looked_for(
    of_template: Any, says: Any, name: str
) -> None:
    (answer,) = ask(says(name, called(name)), tool_choice="none")[0].answers
    assert (answer.calls, answer.finish_reason) == ((), "stop")
    assert ("Paris" in answer.text) == (name != "gpt_oss")  # whose calls are messages to another than the user
    assert "Knows the" not in written(of_template(name), turns(("user", "Weather?")), tool_choice="none")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_an_answer_in_words_is_the_same_streamed_and_whole(says: Any, name: str) -> None:
    opening = f"{MODELS[name].thought}{MODELS[name].answers}" if MODELS[name].opened else MODELS[name].begins
    said = f"{opening}It is  warm {{in}} Paris,\n  and <b>dry</b>."
    tools = () if name == "gemma3" else TOOLS
    ended, text, _ = ask(says(name, said), tools=tools)
    assert ended.text == "It is  warm {in} Paris,\n  and <b>dry</b>."
    assert ended.text.startswith(text)
    assert text
    assert ended.finish_reason == "stop"


@pytest.mark.parametrize("name", CALLING)
def test_a_stop_string_ends_no_answer_within_the_marks_around_it(says: Any, name: str) -> None:
    stop = ("\n\n", "think", "THINK", "assistant", "final", "hannel", "TOOL", "ACTION", "tool_call", "tool\u2581call")
    model = MODELS[name]
    opening = model.called.partition(model.thought)[0] + model.thought + model.answers if model.thought else ""
    ended, text, thoughts = ask(
        says(name, opening + model.begins * (not opening) + "It is warm.\n\nIt is dry."), stop=stop
    )
    assert (ended.text, ended.answers[0].reasoning or "") == ("It is warm.", model.thought)
    assert "It is warm.".startswith(text)
    assert model.thought.startswith(thoughts)
    (answer,) = ask(says(name, called(name)), stop=stop[:-2])[0].answers
    assert calls(answer) == [WEATHER], "though within a call they end it"


def test_json_that_is_no_call_is_text_though_a_call_is_nothing_but_json_too(says: Any) -> None:
    for said in ('{"a": 1}', '{"name": "nobody", "parameters": {}}', '{"name"', "{in} words"):
        ended, text, _ = ask(says("llama3_1", said))
        assert (ended.text, ended.answers[0].calls, text) == (said, (), "")
    cut = ask(says("llama3_1", '{"a": 1, "b": 2}'), max_tokens=4)[0]
    assert cut.finish_reason == "length"
    assert '{"a": 1, "b": 2}'.startswith(cut.text)
    assert cut.text


@pytest.mark.parametrize("name", CALLING)
def test_what_a_tool_said_reaches_the_model_as_its_template_has_it(of_template: Any, name: str) -> None:
    call = {"id": "c0ffee001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    thoughts = {"reasoning_content": MODELS[name].thought} if MODELS[name].thought else {}
    conversation = turns(
        ("user", "Weather?"),
        {"role": "assistant", "content": "", "tool_calls": [call], **thoughts},
        {"role": "tool", "content": "18 degrees", "tool_call_id": "c0ffee001"},
    )
    prompt = written(of_template(name), conversation)
    assert MODELS[name].told in prompt
    assert "Knows the weather." in prompt


def test_a_template_that_leaves_out_what_was_called_says_so_where_no_form_of_calls_is_known(of_template: Any) -> None:
    loaded = of_template("smollm3")
    template = (TEMPLATES / "smollm3.jinja").read_text().replace("<tool_call>", "<call>")
    before, loaded.tokenizer.chat_template = loaded.tokenizer.chat_template, template
    call = {"id": "c0ffee001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    conversation = turns(
        ("user", "Weather?"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "18 degrees", "tool_call_id": "c0ffee001"},
    )
    try:
        with pytest.raises(RequestError, match="leaves out what an assistant called"):
            written(loaded, conversation)
    finally:
        loaded.tokenizer.chat_template = before


@pytest.mark.parametrize(
    ("name", "roles", "lost"),
    [
        ("gpt_oss", ("user", "system"), 2),
        ("gpt_oss", ("system", "system", "user"), 2),
        ("gpt_oss", ("user", "assistant", "system", "user"), 3),
        ("nemotron", ("user", "assistant", "system"), 3),
        ("nemotron", ("system", "user", "system", "user"), 3),
        ("mistral_nemo", ("system",), 1),
        ("gemma3", ("system",), 1),
        ("gemma4", ("user", "tool"), 2),
    ],
)
def test_a_text_that_a_template_leaves_out_in_its_place_is_refused_though_elsewhere_its_role_is_said(
    of_template: Any, name: str, roles: tuple[str, ...], lost: int
) -> None:
    conversations = Conversations(of_template(name).tokenizer)
    told = GenerationWork(1, None, turns(*((role, f"{role} no. {at}") for at, role in enumerate(roles))))
    assert conversations.tokens(GenerationWork(2, None, turns(("user", "Hello"))))
    for _ in range(2):
        with pytest.raises(RequestError, match=f"leaves out what message {lost} says, of the role '{roles[lost - 1]}'"):
            conversations.tokens(told)


@pytest.mark.parametrize("name", CALLING)
def test_what_an_assistant_says_beside_a_call_may_be_left_out(of_template: Any, name: str) -> None:
    call = {"id": "c0ffee001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    conversation = turns(
        ("user", "Weather?"),
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "content": "18 degrees", "tool_call_id": "c0ffee001"},
    )
    assert "18 degrees" in written(of_template(name), conversation)


def test_ids_of_calls_that_others_made_are_shortened_where_a_template_takes_short_ones_alone(of_template: Any) -> None:
    made = "call_3f2504e04f8911d39a0c0305e82c3301"
    call = {"id": made, "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    conversation = turns(
        ("user", "Weather?"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "18", "tool_call_id": made},
    )
    prompt = written(of_template("mistral_nemo"), conversation)
    first, second = prompt.partition('"id": "')[2][:9], prompt.partition('"call_id": "')[2][:9]
    assert first == second
    assert first.isalnum()


def test_of_several_templates_that_for_tools_says_how_calls_are_written(
    of_template: Any, make_engine: Any, tmp_path: Path
) -> None:
    model = of_template("hermes")
    folder = tmp_path / "named"
    shutil.copytree(model.tokenizer.name_or_path, folder)
    (folder / "chat_template.jinja").unlink()
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    plain = "{% for message in messages %}{{ message.content }}{% endfor %}"
    stated["chat_template"] = [
        {"name": "default", "template": plain},
        {"name": "tool_use", "template": (TEMPLATES / "hermes.jinja").read_text()},
    ]
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    loaded = load(folder)
    tokens = [*loaded.tokenizer.encode(called("hermes"), add_special_tokens=False), loaded.tokenizer.eos_token_id]
    width = len(loaded.tokenizer)
    says_it = SaysByHeart(loaded.model, tokens, width)
    engine = make_engine(1, dataclasses.replace(loaded, model=says_it, vocabulary_size=width))
    (answer,) = ask(engine)[0].answers
    assert calls(answer) == [WEATHER]
    assert "Knows the weather." in written(loaded, turns(("user", "Weather?")))


@pytest.mark.parametrize("name", CALLING)
@pytest.mark.parametrize("left_out", [("description",), ("parameters",), ("description", "parameters")])
def test_what_a_tool_may_leave_out_no_template_refuses(of_template: Any, name: str, left_out: tuple[str, ...]) -> None:
    whole: dict[str, Any] = {"name": "weather", "description": "Knows the weather.", "parameters": PLACE}
    tool = {"type": "function", "function": {key: whole[key] for key in whole if key not in left_out}}
    work = GenerationWork(1, None, turns(("user", "Weather?")), tools=(tool,))
    assert "weather" in of_template(name).tokenizer.decode(Conversations(of_template(name).tokenizer).tokens(work))


def test_a_template_without_tools_says_so(says: Any) -> None:
    engine = says("gemma3", "Yes.")
    engine.admit(GenerationWork(1, None, turns(("user", "Weather?")), tools=TOOLS))
    (refused,) = engine.step()
    assert isinstance(refused, Rejected)
    assert refused.message == (
        "this model's chat template has no place for tools: leave them out, or take a model that was trained to call "
        "tools"
    )


def written(loaded: LoadedModel, messages: tuple[Mapping[str, Any], ...], **changes: Any) -> str:
    tokens = Conversations(loaded.tokenizer).tokens(GenerationWork(1, None, messages, tools=TOOLS, **changes))
    return str(loaded.tokenizer.decode(tokens))
