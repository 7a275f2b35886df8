"""Models that think before they answer: thoughts apart, counted, bounded, and free of the answer's schema."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.protocol import Generated, Progress, Rejected
from tests.generation.by_heart import SaysByHeart
from tests.generation.conftest import turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from impetus_backends.generation.engine import GenerationEngine
    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system
ASKS = turns(("user", "Well?"))
OPENED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
)
CLOSED = OPENED.rpartition("{% else %}")[0] + "{% endif %}"
SCHEMA = (
    '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}'
)


@pytest.fixture
def says(loaded: LoadedModel, make_engine: Any) -> Callable[..., GenerationEngine]:
    """An engine whose model says this text to whoever asks; the template opens a thought, or leaves it to the model."""

    def make(text: str, template: str) -> GenerationEngine:
        from mlx_lm.tokenizer_utils import TokenizerWrapper

        own = copy.deepcopy(loaded.tokenizer._tokenizer)
        own.add_tokens(["<think>", "</think>"])
        own.chat_template = template
        tokenizer = TokenizerWrapper(own, eos_token_ids=loaded.tokenizer.eos_token_ids)
        tokens = [*own.encode(text, add_special_tokens=False), own.eos_token_id]
        model = SaysByHeart(loaded.model, tokens, len(own))
        return make_engine(  # type: ignore[no-any-return]
            1, dataclasses.replace(loaded, model=model, tokenizer=tokenizer, vocabulary_size=len(own))
        )

    return make


def asked(engine: GenerationEngine, work: Any, **changes: Any) -> tuple[Generated, list[Progress]]:
    engine.admit(work(1, None, messages=ASKS, max_tokens=200, stream=True, **changes))
    events = [event for _ in iter(engine.pending, 0) for event in engine.step()]
    (ended,) = [event for event in events if isinstance(event, Generated)]
    return ended, [event for event in events if isinstance(event, Progress)]


@pytest.mark.parametrize(
    ("template", "text"),
    [(OPENED, "Let me see.\n</think>\n\nYes, it is."), (CLOSED, "<think>\nLet me see.\n</think>\n\nYes, it is.")],
    ids=["opened by the template", "opened by the model"],
)
def test_thoughts_come_apart_are_streamed_apart_and_counted_apart(
    says: Any, work: Any, template: str, text: str
) -> None:
    ended, progress = asked(says(text, template), work)
    assert (ended.text, ended.answers[0].reasoning) == ("Yes, it is.", "Let me see.")
    assert "Yes, it is.".startswith("".join(each.text for each in progress))
    assert "Let me see.".startswith("".join(each.reasoning for each in progress))
    assert "".join(each.reasoning for each in progress)
    assert 0 < ended.reasoning_tokens < ended.completion_tokens


def test_a_thought_that_no_answer_follows_is_none_by_a_schema(says: Any, work: Any) -> None:
    engine = says("Let me see.", OPENED)
    engine.admit(work(1, None, messages=ASKS, max_tokens=200, schema=SCHEMA))
    (refused,) = [event for _ in iter(engine.pending, 0) for event in engine.step() if isinstance(event, Rejected)]
    assert refused.message == "the model ended in its thoughts, and made no answer of its schema"


@pytest.mark.parametrize(
    ("begun", "text", "thought", "answer"),
    [
        ("<think>\nLet me", " see.\n</think>\n\nYes.", " see.", "Yes."),
        ("<think>\nLet me see.\n</think>\n\nYes", ", it is.", None, ", it is."),
        ("Yes", ", it is.", None, ", it is."),
    ],
    ids=["in the thought", "in the answer", "without a thought"],
)
def test_what_goes_on_from_a_thought_goes_on_thinking(
    says: Any, work: Any, begun: str, text: str, thought: str | None, answer: str
) -> None:
    engine = says(text, CLOSED)
    messages = turns(("user", "Well?"), ("assistant", begun))
    engine.admit(work(1, None, messages=messages, max_tokens=200, continue_final_message=True))
    (ended,) = [each for _ in iter(engine.pending, 0) for each in engine.step() if isinstance(each, Generated)]
    assert (ended.answers[0].reasoning, ended.text) == (thought, answer)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "answer"),
    [("see", "Yes, it is. No more."), (".", "Yes, it is"), ("me see.\n</think>", "Yes, it is. No more."),
     ("</think>", "Yes, it is. No more."), ("Yes", ""), ("no such", "Yes, it is. No more.")],
)  # fmt: skip
def test_what_ends_an_answer_ends_no_thought(says: Any, work: Any, stop: str, answer: str, stream: bool) -> None:
    engine = says("Let me see.\n</think>\n\nYes, it is. No more.", OPENED)
    engine.admit(work(1, None, messages=ASKS, max_tokens=200, stream=stream, stop=(stop,)))
    events = [event for _ in iter(engine.pending, 0) for event in engine.step()]
    (ended,) = [event for event in events if isinstance(event, Generated)]
    assert (ended.answers[0].reasoning, ended.text) == ("Let me see.", answer)
    streamed = "".join(event.text for event in events if isinstance(event, Progress))
    assert answer.startswith(streamed)


@pytest.mark.parametrize("off", [{"reasoning_effort": "none"}, {"template_variables": {"enable_thinking": False}}])
def test_thinking_is_turned_off_where_the_template_can(says: Any, work: Any, off: dict[str, Any]) -> None:
    ended, _ = asked(says("Yes.", OPENED), work, **off)
    assert (ended.text, ended.answers[0].reasoning, ended.reasoning_tokens) == ("Yes.", None, 0)


@pytest.mark.parametrize(
    ("template", "opening"), [(OPENED, ""), (CLOSED, "<think>")], ids=["opened by the template", "opened by the model"]
)
def test_a_schema_begins_where_the_thinking_ends(says: Any, work: Any, template: str, opening: str) -> None:
    ended, _ = asked(says(opening + 'I think {"b": 2}</think>{"a": 1}', template), work, schema=SCHEMA)
    assert (ended.text, ended.answers[0].reasoning) == ('{"a": 1}', 'I think {"b": 2}')


def test_a_model_that_does_not_think_after_all_is_kept_to_the_schema_from_the_first(says: Any, work: Any) -> None:
    ended, _ = asked(says('{"a": 1}', CLOSED), work, schema=SCHEMA)
    assert (ended.text, ended.answers[0].reasoning) == ('{"a": 1}', None)


@pytest.mark.parametrize("most", [0, 1, 5])
@pytest.mark.parametrize(
    ("template", "opening"),
    [(OPENED, ""), (CLOSED, "<think>"), (CLOSED, "\n<think>\n")],
    ids=["opened by the template", "opened by the model", "after a line break"],
)
def test_thoughts_are_brought_to_an_end(says: Any, work: Any, template: str, opening: str, most: int) -> None:
    engine = says(opening + "thinking on and on and on", template)
    ended, _ = asked(engine, work, max_reasoning_tokens=most, min_tokens=1)
    assert ended.reasoning_tokens == most + 1, "and the mark that ends them"
    assert ended.finish_reason == "stop"
    assert "on" in ended.text
