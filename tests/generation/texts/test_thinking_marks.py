"""Marks of thoughts that are no tokens of their own: a model spells them, as text that its template knows."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.generation.texts.channels import Channels
from impetus_backends.protocol import Generated, Progress
from tests.generation.by_heart import SaysByHeart
from tests.generation.conftest import turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from impetus_backends.generation.engine import GenerationEngine
    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system
ASKS = turns(("user", "Well?"))
MARKS = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<mm:think>", "</mm:think>"),
    ("<think:opensource>", "</think:opensource>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<thought>", "</thought>"),
]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content.split('END')[-1] }}\n{% endfor %}assistant:"
    "{% if opened is defined %}START\n{% endif %}"
)
OBJECT = (
    '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}'
)
LIST = '{"type": "array", "items": {"type": "integer"}, "minItems": 1}'


@pytest.fixture
def says(loaded: LoadedModel, make_engine: Any) -> Callable[..., GenerationEngine]:
    """An engine whose model says this text, with START and END for the marks, to whoever asks."""

    def make(text: str, marks: tuple[str, str], merges: tuple[str, ...] = ()) -> GenerationEngine:
        from mlx_lm.tokenizer_utils import TokenizerWrapper

        own = copy.deepcopy(loaded.tokenizer._tokenizer)
        own.add_tokens(list(merges))
        own.chat_template = marked(TEMPLATE, marks)
        tokenizer = TokenizerWrapper(own, eos_token_ids=loaded.tokenizer.eos_token_ids)
        tokens = [*own.encode(marked(text, marks), add_special_tokens=False), own.eos_token_id]
        model = SaysByHeart(loaded.model, tokens, len(own))
        return make_engine(  # type: ignore[no-any-return]
            1, dataclasses.replace(loaded, model=model, tokenizer=tokenizer, vocabulary_size=len(own))
        )

    return make


def marked(text: str, marks: tuple[str, str]) -> str:
    return text.replace("START", marks[0]).replace("END", marks[1])


def asked(engine: GenerationEngine, work: Any, **changes: Any) -> tuple[Generated, list[Progress]]:
    engine.admit(work(1, None, messages=ASKS, max_tokens=200, stream=True, **changes))
    events = [event for _ in iter(engine.pending, 0) for event in engine.step()]
    (ended,) = [event for event in events if isinstance(event, Generated)]
    return ended, [event for event in events if isinstance(event, Progress)]


@pytest.mark.parametrize("marks", MARKS, ids=[start for start, _ in MARKS])
@pytest.mark.parametrize("opened", [False, True])
def test_thoughts_are_told_apart_and_counted_by_marks_that_are_spelt(
    says: Any, work: Any, marks: tuple[str, str], opened: bool
) -> None:
    text = ("" if opened else "START\n") + "Let me see.\nEND\n\nYes, it is."
    variables = {"opened": True} if opened else {}
    ended, progress = asked(says(text, marks), work, template_variables=variables)
    assert (ended.text, ended.answers[0].reasoning) == ("Yes, it is.", "Let me see.")
    assert "Yes, it is.".startswith("".join(each.text for each in progress))
    assert "".join(each.reasoning for each in progress) == "Let me see."
    assert 0 < ended.reasoning_tokens < ended.completion_tokens


@pytest.mark.parametrize("marks", MARKS, ids=[start for start, _ in MARKS])
@pytest.mark.parametrize(("schema", "answer"), [(OBJECT, '{"a": 1}'), (LIST, "[1]")], ids=["an object", "a list"])
@pytest.mark.parametrize("thinks", [False, True])
def test_a_schema_begins_after_a_mark_that_is_spelt_or_with_the_first_token(
    says: Any, work: Any, marks: tuple[str, str], schema: str, answer: str, thinks: bool
) -> None:
    ended, _ = asked(says(f"STARTHm, [2] {{END{answer}" if thinks else answer, marks), work, schema=schema)
    assert (ended.text, ended.answers[0].reasoning) == (answer, "Hm, [2] {" if thinks else None)


@pytest.mark.parametrize("marks", MARKS, ids=[start for start, _ in MARKS])
@pytest.mark.parametrize("most", [0, 1, 5])
def test_thoughts_are_brought_to_an_end_by_a_mark_that_is_spelt(
    says: Any, work: Any, marks: tuple[str, str], most: int
) -> None:
    engine = says("START" + "thinking on and on" * 9, marks)
    ended, _ = asked(engine, work, max_reasoning_tokens=most, min_tokens=1)
    own = engine._reader._channels.marks.end_tokens
    assert ended.reasoning_tokens == most + len(own), "and the mark that ends them"
    assert "on" in ended.text
    assert marks[1] not in ended.text


@pytest.mark.parametrize("most", range(8))
def test_a_mark_that_a_model_has_begun_by_itself_is_not_begun_again(says: Any, work: Any, most: int) -> None:
    ended, _ = asked(says("STARTHm.ENDYes.", MARKS[0]), work, max_reasoning_tokens=most)
    assert "Hm.".startswith(ended.answers[0].reasoning or "")
    assert "</" not in ended.text.removesuffix(MARKS[0][1] + "Yes.")


@pytest.mark.parametrize("most", [0, 3])
def test_an_answer_that_begins_as_a_mark_does_is_left_alone_by_a_budget(says: Any, work: Any, most: int) -> None:
    ended, _ = asked(says("<th>Yes.</th>", MARKS[0]), work, max_reasoning_tokens=most)
    assert (ended.text, ended.answers[0].reasoning) == ("<th>Yes.</th>", None)


@pytest.mark.parametrize("joined", [">\n\n", ".</", ">{", "nk>"])
def test_tokens_that_reach_over_a_mark_begin_and_end_thoughts_all_the_same(says: Any, work: Any, joined: str) -> None:
    engine = says('START\n\nHm.END{"a": 1}', MARKS[0], (joined,))
    ended, _ = asked(engine, work, schema=OBJECT, max_reasoning_tokens=40)
    assert ended.answers[0].reasoning == "Hm."
    assert ended.text.replace(" ", "").startswith('{"a":')


def test_thoughts_are_told_apart_beside_calls_that_mlx_lm_knows(loaded: LoadedModel) -> None:
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from mlx_lm.tool_parsers import mistral

    own = copy.deepcopy(loaded.tokenizer._tokenizer)
    own.chat_template = None
    own.add_tokens(["[THINK]", "[/THINK]", "[TOOL_CALLS]"])
    tokenizer = TokenizerWrapper(
        own,
        tool_call_start=mistral.tool_call_start,
        tool_call_end=mistral.tool_call_end,
        tool_parser=mistral.parse_tool_call,
    )
    splitter = Channels(tokenizer).splitter(thinking=False, calls=True)
    assert splitter is not None
    said = splitter.whole("[THINK]Hm.[/THINK]Well.[TOOL_CALLS]look[ARGS]{}", complete=True)
    assert (said.text, said.reasoning, said.calls) == ("Well.", "Hm.", ["look[ARGS]{}"])
