"""Chat templates say what they are given, or the request is refused."""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.errors import ModelError, RequestError
from impetus_backends.generation.models.loader import load
from impetus_backends.generation.texts.conversations import Conversations
from impetus_backends.protocol import Rejected
from tests.generation.conftest import conversation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system

LLAVA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
FIRST_PART = "{% for message in messages %}{{ message.role }}: {{ message.content[0].text }}\n{% endfor %}"
EITHER = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
)
NO_SYSTEM = "{% for message in messages if message.role in ['user', 'assistant'] %}{{ message.content }}{% endfor %}"
STRICT = (
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ message.role }}] {{ message.content | trim }} "
    "{% endfor %}"
)
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS_FOR_ZEBRAS = (
    "{% if 'zebra' in messages[-1].content %}" + ENDLESS + "{% endif %}"
    "{% for message in messages %}{{ message.content }}{% endfor %}"
)
OF_A_NAME = (
    "{% for m in messages %}{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function.name }}"
    "{% for key, value in call.function.arguments.items() %}({{ key }}={{ value }}){% endfor %}{% endfor %}"
    "{% if m.role == 'tool' and not m.name %}{{ raise_exception('whose result is it?') }}{% endif %}"
    "{{ m.name }}{% endfor %}"
)
NOBODY = "Hello. {% for message in messages %}{{ message.role }}{% endfor %}"


@pytest.fixture
def with_template(loaded: LoadedModel, tiny_folder: Path, tmp_path: Path) -> Callable[[str], LoadedModel]:
    def make(template: str) -> LoadedModel:
        folder = shutil.copytree(tiny_folder, tmp_path / "templated")
        (folder / "chat_template.jinja").write_text(template)
        return load(folder)

    return make


CONVERSATION = (("user", "What is naïve?"), ("assistant", "An answer."), ("user", "And 語?"))


@pytest.mark.parametrize("template", [LLAVA, FIRST_PART, EITHER, NO_SYSTEM, STRICT])
def test_every_text_of_a_conversation_is_in_the_prompt(with_template: Any, template: str) -> None:
    model = with_template(template)
    prompt = model.tokenizer.decode(Conversations(model.tokenizer).tokens(conversation(*CONVERSATION)))
    for _, content in CONVERSATION:
        assert content in prompt
    assert "{" not in prompt, "a list of parts was written as it is"


def test_a_text_that_its_template_leaves_out_is_refused_with_the_role(
    with_template: Any, make_engine: Any, work: Any, drive: Any
) -> None:
    engine = make_engine(loaded=with_template(NO_SYSTEM))
    messages = (("system", "Be brief."), ("user", "Hello"))
    ended = drive(engine, work(1, None, messages=messages), work(2, None, messages=messages[1:]))
    assert isinstance(ended[1], Rejected)
    assert "leaves out what message 1 says, of the role 'system'" in ended[1].message
    assert not isinstance(ended[2], Rejected)
    with_nothing_to_say = (("system", ""), ("user", "Hello"))
    assert not isinstance(drive(engine, work(3, None, messages=with_nothing_to_say))[3], Rejected)


def test_a_template_that_says_no_text_in_any_form_is_refused(with_template: Any) -> None:
    conversations = Conversations(with_template(NOBODY).tokenizer)
    with pytest.raises(RequestError, match="leaves out what message 1 says, of the role 'user': send `prompt`"):
        conversations.tokens(conversation(*CONVERSATION))


def test_a_template_that_refuses_does_so_in_its_own_words(with_template: Any) -> None:
    conversations = Conversations(with_template(STRICT).tokenizer)
    with pytest.raises(RequestError, match="roles must alternate"):
        conversations.tokens(conversation(("user", "one"), ("user", "two")))
    assert conversations.tokens(conversation(*CONVERSATION))


# -- tokenizers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_tokenizer(tiny_folder: Path, loaded: LoadedModel, tmp_path: Path) -> Callable[..., Path]:
    """The tiny model with its tokenizer.json changed while the tokenizer that is loaded is another."""

    def make(change: Callable[[dict[str, Any]], None]) -> Path:
        folder = shutil.copytree(tiny_folder, tmp_path / "tokenizer")
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))
        return folder

    return make


def test_a_tokenizer_that_loses_spaces_is_refused_at_load(
    with_tokenizer: Any, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from impetus_backends.generation.models.tokenizer_check import check_tokenizer

    def lose_spaces(content: dict[str, Any]) -> None:
        content["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": ""}

    # As if this were what the folder says, and transformers had made another one of it.
    folder = with_tokenizer(lose_spaces)
    with pytest.raises(ModelError, match="does not read the tokenizer in") as refused:
        check_tokenizer(loaded.tokenizer, folder)
    assert "\n" not in str(refused.value)
    # And the other way round.
    wrong = load_without_check(folder, monkeypatch)
    with pytest.raises(ModelError, match="comes back as"):
        check_tokenizer(wrong.tokenizer, with_same(folder, loaded))


def load_without_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    with monkeypatch.context() as context:
        context.setattr("impetus_backends.generation.models.loader.check_tokenizer", lambda tokenizer, folder: None)
        return load(folder)


def with_same(folder: Path, loaded: LoadedModel) -> Path:
    """The folder with the tokenizer.json of what was loaded before."""
    loaded.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_tokenizer_that_cuts_otherwise_is_told_of(with_tokenizer: Any, loaded: LoadedModel) -> None:
    from impetus_backends.generation.models.tokenizer_check import check_tokenizer

    def merge_less(content: dict[str, Any]) -> None:
        content["model"]["merges"] = content["model"]["merges"][:20]

    assert "into other tokens" in str(check_tokenizer(loaded.tokenizer, with_tokenizer(merge_less)))
    assert loaded.reasons == ()


def test_a_tokenizer_that_cannot_read_ordinary_text_is_refused_in_one_sentence(
    loaded: LoadedModel, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "guessed")
    configuration = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration | {"tokenizer_class": "GemmaTokenizer"}))
    with pytest.raises(ModelError, match="tokenizer"):
        load(folder)


def test_a_template_that_does_not_end_for_a_request_fails_that_one_and_the_others_go_on(
    with_template: Any, make_engine: Any, work: Any, drive: Any
) -> None:
    engine = make_engine(loaded=with_template(ENDLESS_FOR_ZEBRAS))
    ended = drive(
        engine,
        work(1, None, messages=(("user", "A zebra"),)),
        work(2, None, messages=(("user", "A horse"),)),
        work(3, "Text"),
    )
    assert ended[1].message == "the model's chat template did not come to an end within 2 s of computing"
    assert not isinstance(ended[2], Rejected)
    assert not isinstance(ended[3], Rejected)


def test_a_template_that_never_ends_holds_up_the_loading_once_and_no_request(
    with_template: Any, make_engine: Any, work: Any, drive: Any
) -> None:
    engine = make_engine(loaded=with_template(ENDLESS))
    before = time.process_time()
    ended = drive(engine, *(work(each, None, messages=(("user", "Hello"),)) for each in range(1, 21)), work(30, "Text"))
    assert time.process_time() - before < 20, "each had its own time"
    assert {ended[each].message for each in range(1, 21)} == {
        "the model's chat template did not come to an end within 2 s of computing"
    }
    assert not isinstance(ended[30], Rejected)


def called(arguments: Any, **named: str) -> tuple[dict[str, Any], ...]:
    call = {"id": "c1", "type": "function", "function": {"name": "wander", "arguments": arguments}}
    return (
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Gone.", "tool_call_id": "c1", **named},
    )


def test_a_template_that_asks_for_the_name_of_a_tool_with_its_result_finds_it_by_the_call(
    with_template: Any, work: Any
) -> None:
    loaded = with_template(OF_A_NAME)
    conversations = Conversations(loaded.tokenizer)
    for named, wanted in (({}, "wander"), ({"name": "wanderer"}, "wanderer")):
        tokens = conversations.tokens(work(1, None, messages=called({"at": "x"}, **named)))
        assert loaded.tokenizer.decode(tokens) == f"Go.wander(at=x)Gone.{wanted}"


def test_a_call_with_arguments_that_are_no_object_is_named_where_a_template_refuses_it(
    with_template: Any, work: Any
) -> None:
    conversations = Conversations(with_template(OF_A_NAME).tokenizer)
    with pytest.raises(RequestError, match=r"^message 2: a tool is called with arguments that are no JSON object"):
        conversations.tokens(work(1, None, messages=called('{"at": ')))
