"""What a request may ask for beyond a text and its length."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.generation.models.defaults import ModelDefaults
from impetus_backends.generation.requests import Request
from impetus_backends.protocol import Generated, Progress, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable

    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system
PROMPT = "A queue holds"
SEVERAL = {"temperature": 1.0, "seed": 5}


@pytest.fixture
def answer(make_engine: Any, work: Any, drive: Any) -> Callable[..., Generated]:
    def run(prompt: str | None = PROMPT, loaded: LoadedModel | None = None, **changes: Any) -> Generated:
        ended = drive(make_engine(loaded=loaded), work(1, prompt, **changes))[1]
        assert isinstance(ended, Generated), ended
        return ended

    return run


@pytest.fixture(scope="module")
def tokens_of(loaded: LoadedModel) -> Callable[[str], list[int]]:
    def encode(text: str) -> list[int]:
        return list(loaded.tokenizer.encode(text, add_special_tokens=False))

    return encode


def test_several_answers_are_those_of_the_seeds_that_follow_each_other(answer: Any) -> None:
    several = answer(n=3, **SEVERAL)
    alone = [answer(temperature=1.0, seed=5 + at) for at in range(3)]
    assert [each.text for each in several.answers] == [each.text for each in alone]
    assert several.completion_tokens == sum(each.completion_tokens for each in alone)
    assert several.prompt_tokens == alone[0].prompt_tokens


def test_answers_are_streamed_one_after_another_and_neighbours_go_on(make_engine: Any, work: Any, solo: Any) -> None:
    engine = make_engine(2)
    engine.admit(work(1, PROMPT, n=3, stream=True, **SEVERAL))
    for at in (2, 3, 4):
        engine.admit(work(at, "Another"))
    said: dict[int, str] = {}
    ended: dict[int, Generated] = {}
    while engine.pending():
        for event in engine.step():
            if isinstance(event, Progress):
                assert list(said)[-1:] in ([], [event.choice], [event.choice - 1]), "one after another"
                said[event.choice] = said.get(event.choice, "") + event.text
            elif isinstance(event, Generated):
                ended[event.id] = event
    for choice, each in enumerate(ended[1].answers):
        assert each.text.startswith(said.get(choice, ""))
    assert len(ended[1].answers) == 3
    assert {at: ended[at].text for at in (2, 3, 4)} == dict.fromkeys((2, 3, 4), solo("Another"))


def test_of_several_answers_a_cancelled_one_keeps_those_that_are_whole(make_engine: Any, work: Any) -> None:
    engine = make_engine()
    engine.admit(work(1, PROMPT, n=3, stream=True, **SEVERAL))
    while engine.pending():
        events = engine.step()
        if any(isinstance(event, Progress) and event.choice == 1 for event in events):
            engine.cancel(1)
    (ended,) = [event for event in events if isinstance(event, Generated)]
    assert ended.answers[0].finish_reason in ("stop", "length")
    assert ended.answers[-1].finish_reason == "cancelled"
    assert len(ended.answers) == 2


def test_where_a_step_fails_all_answers_of_its_requests_are_made_again(
    make_engine: Any, work: Any, drive: Any, loaded: LoadedModel, answer: Any
) -> None:
    calls = iter(range(1000))

    class FailsLater:
        def __call__(self, tokens: Any, **options: Any) -> Any:
            if next(calls) == 45:
                raise RuntimeError("the device is gone")
            return loaded.model(tokens, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(loaded.model, name)

    engine = make_engine(loaded=dataclasses.replace(loaded, model=FailsLater()))
    ended = drive(engine, work(1, PROMPT, n=3, **SEVERAL))[1]
    assert next(calls) > 46
    assert [each.text for each in ended.answers] == [each.text for each in answer(n=3, **SEVERAL).answers]


def test_a_bias_bans_a_token_or_allows_no_other(answer: Any, loaded: LoadedModel, tokens_of: Any) -> None:
    first = answer(max_tokens=1, logprobs=True).answers[0].logprobs[0].token
    (token,) = tokens_of(first)
    banned = answer(max_tokens=1, logprobs=True, logit_bias={token: -100.0})
    assert banned.answers[0].logprobs[0].token != first
    assert answer(max_tokens=5, logit_bias={tokens_of("x")[0]: 100.0}).text == "xxxxx"


def test_a_bias_of_a_token_that_there_is_not_fails_alone(
    make_engine: Any, work: Any, drive: Any, solo: Any, loaded: LoadedModel
) -> None:
    ended = drive(make_engine(), work(1, PROMPT, logit_bias={99_999: 1.0}), work(2, PROMPT))
    assert isinstance(ended[1], Rejected)
    assert ended[1].message == f"logit_bias: there is no token 99,999, of {loaded.vocabulary_size}"
    assert ended[2].text == solo(PROMPT)


def test_penalties_count_what_stands_in_the_answer_and_not_in_the_prompt(answer: Any, tokens_of: Any) -> None:
    (x,) = tokens_of("x")
    wants_x = {"logit_bias": {x: 50.0}, "max_tokens": 6}
    assert answer("xxxx", **wants_x).text == "x" * 6
    assert answer("xxxx", **wants_x, presence_penalty=2.0).text == "x" * 6, "once, and 50 is more"
    only_x = {"logit_bias": {x: 100.0}, "max_tokens": 30}
    few = answer("xxxx", **only_x, frequency_penalty=2.0).text
    assert few.startswith("x")
    weaker = answer("xxxx", logit_bias={x: 12.0}, max_tokens=30, frequency_penalty=2.0).text
    assert 0 < weaker.count("x") < 30, "each time it stands there costs as much again"
    assert answer("xxxx", logit_bias={x: 12.0}, max_tokens=30).text == "x" * 30


def test_a_negative_penalty_asks_for_what_stands_there(answer: Any) -> None:
    plain, more = answer(max_tokens=30), answer(max_tokens=30, frequency_penalty=-2.0)
    assert len(set(more.text)) <= len(set(plain.text))
    assert more.text != plain.text


def test_the_likeliest_tokens_of_each_place_are_told(answer: Any) -> None:
    (made,) = answer(max_tokens=4, logprobs=True, top_logprobs=3).answers
    for each in made.logprobs:
        assert len(each.others) == 3
        numbers = [other.logprob for other in each.others]
        assert numbers == sorted(numbers, reverse=True)
        assert dataclasses.replace(each, others=()) == each.others[0], "it is greedy"
        assert sum(map(math.exp, numbers)) <= 1.0001


def test_a_token_that_is_a_part_of_a_character_says_its_bytes(answer: Any, tokens_of: Any) -> None:
    first = tokens_of("\U0001f642")[0]
    (made,) = answer(max_tokens=1, logprobs=True, top_logprobs=2, logit_bias={first: 100.0}).answers
    assert made.text == ""
    (token,) = made.logprobs
    assert (token.token.strip("\ufffd"), token.raw) == ("", "\U0001f642".encode()[: len(token.raw)])
    assert all(other.raw is None for other in token.others if "\ufffd" not in other.token)


def test_a_text_may_be_kept_from_ending_and_end_at_tokens_of_ones_own(
    answer: Any, loaded: LoadedModel, tokens_of: Any
) -> None:
    end = next(iter(loaded.tokenizer.eos_token_ids))
    ends_soon = {"logit_bias": {end: 100.0}, "max_tokens": 9}
    assert answer(**ends_soon).completion_tokens == 1
    later = answer(**ends_soon, min_tokens=5)
    assert (later.completion_tokens, later.finish_reason) == (6, "stop")
    never = answer(**ends_soon, ignore_eos=True)
    assert (never.completion_tokens, never.finish_reason) == (9, "length")
    x = tokens_of("x")[0]
    stopped = answer(logit_bias={x: 100.0}, stop_token_ids=(x,), max_tokens=9)
    assert (stopped.text, stopped.finish_reason, stopped.completion_tokens) == ("", "stop", 1)


def test_without_a_length_an_answer_may_take_what_is_left_up_to_the_operators_limit(
    make_engine: Any, work: Any, drive: Any, loaded: LoadedModel
) -> None:
    endless = {"ignore_eos": True, "max_tokens": None}
    ended = drive(make_engine(max_answer_tokens=50), work(1, PROMPT, **endless))[1]
    assert (ended.completion_tokens, ended.finish_reason) == (50, "length")
    small = dataclasses.replace(loaded, context_tokens=20)
    ended = drive(make_engine(loaded=small, max_answer_tokens=50), work(1, PROMPT, **endless))[1]
    assert ended.completion_tokens + ended.prompt_tokens == 20
    full = dataclasses.replace(loaded, context_tokens=ended.prompt_tokens)
    long = drive(make_engine(loaded=full), work(1, PROMPT, **endless))[1]
    assert "leave no room for an answer" in long.message


def test_without_a_length_an_answer_takes_no_more_than_the_memory_holds(
    make_engine: Any, work: Any, drive: Any, loaded: LoadedModel
) -> None:
    from impetus_backends.generation.memory import Budget, measure_row_cost, weights_bytes

    room = Budget(measure_row_cost(loaded.model), None).needed_bytes([300])
    engine = make_engine(loaded=loaded, memory_bytes=weights_bytes(loaded.model) + room, prefix_cache_bytes=0)
    told = drive(engine, work(1, PROMPT, max_tokens=1000))[1]
    assert isinstance(told, Rejected), "so much does not fit, where it is asked for"
    assert isinstance(drive(engine, work(2, PROMPT, max_tokens=None))[2], Generated)


def test_where_a_request_is_silent_the_models_own_files_hold_and_the_result_says_what_did(
    answer: Any, loaded: LoadedModel
) -> None:
    stated = ModelDefaults({"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1})
    model = dataclasses.replace(loaded, defaults=stated)
    silent = {"temperature": None, "top_p": None, "seed": 3}
    made = answer(loaded=model, **silent)
    assert made.sampling == {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.1}
    said = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1, "seed": 3}
    assert made.text == answer(**said).text
    assert made.text != answer(**silent).text
    own = answer(loaded=model, temperature=0.0, top_p=1.0, top_k=0, repetition_penalty=1.0)
    assert own.text == answer().text
    assert answer(**silent).sampling == {
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
    }  # fmt: skip


def test_an_answer_goes_on_from_the_last_message(answer: Any, loaded: LoadedModel) -> None:
    talk = (("user", "Where do jobs wait?"), ("assistant", "In Re"))
    made = answer(None, messages=talk, continue_final_message=True)
    written = "<|im_start|>user\nWhere do jobs wait?<|im_end|>\n<|im_start|>assistant\nIn Re"
    assert made.text == answer(written).text
    assert not made.text.startswith("In Re")


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "tools", "sanitize_control_tokens", "messages"])
def test_what_is_no_variable_of_a_template_is_refused(make_engine: Any, work: Any, drive: Any, name: str) -> None:
    item = work(1, None, messages=(("user", "x"),), template_variables={name: "x"})
    ended = drive(make_engine(), item)[1]
    assert ended.message == f"chat_template_kwargs: {name} is not for a request to say"


def test_a_call_that_has_to_be_made_is_one_of_a_tool(answer: Any) -> None:
    place = {"type": "object", "properties": {"at": {"type": "string", "maxLength": 3}}, "required": ["at"],
             "additionalProperties": False}  # fmt: skip
    tools = tuple({"type": "function", "function": {"name": name, "parameters": place}} for name in ("look", "go"))
    for choice, names in (("required", {"look", "go"}), ("=go", {"go"})):
        made = answer(None, messages=(("user", "x"),), tools=tools, tool_choice=choice, max_tokens=200, seed=1)
        assert made.finish_reason == "tool_calls"
        ((call,), text) = made.answers[0].calls, made.text
        assert call.name in names
        assert set(json.loads(call.arguments)) == {"at"}
        assert text == ""


def test_a_call_that_has_to_be_made_is_not_streamed_as_text(make_engine: Any, work: Any) -> None:
    place = {"type": "object", "properties": {}, "additionalProperties": False}
    tools = ({"type": "function", "function": {"name": "go", "parameters": place}},)
    engine = make_engine()
    engine.admit(work(1, None, messages=(("user", "x"),), tools=tools, tool_choice="=go", max_tokens=200, stream=True))
    events = [event for _ in iter(engine.pending, False) for event in engine.step()]
    (ended,) = [event for event in events if isinstance(event, Generated)]
    assert [call.name for call in ended.answers[0].calls] == ["go"]
    assert not [event for event in events if isinstance(event, Progress)]


def test_a_template_without_tools_says_so(loaded: LoadedModel, make_engine: Any, work: Any, drive: Any) -> None:
    import copy

    plain = copy.copy(loaded.tokenizer)
    plain._tokenizer = copy.copy(loaded.tokenizer._tokenizer)
    plain._tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tools = ({"type": "function", "function": {"name": "look"}},)
    engine = make_engine(loaded=dataclasses.replace(loaded, tokenizer=plain))
    ended = drive(engine, work(1, None, messages=(("user", "x"),), tools=tools))[1]
    assert "this model's chat template has no place for tools" in ended.message
    fine = drive(engine, work(2, None, messages=(("user", "x"),), tools=tools, tool_choice="none"))[2]
    assert isinstance(fine, Generated)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_repeats_an_item_is_drawn_anew_and_by_the_same_seed_the_same(
    make_engine: Any, work: Any, drive: Any, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_anew: list[Request] = []
    try_again = Request.try_again

    def seen(request: Request) -> bool:
        drawn_anew.append(request)
        return try_again(request)

    monkeypatch.setattr(Request, "try_again", seen)
    schema = json.dumps(
        {
            "type": "array",
            "items": {"enum": [*"abcdefgh"]},
            "uniqueItems": True,
            "minItems": 3,
            "maxItems": 3,
        }
    )
    drawn = {"schema": schema, "temperature": 2.0, "stream": stream, "max_tokens": 400}
    works = [work(seed, PROMPT, seed=seed, **drawn) for seed in range(12)]
    ended = drive(make_engine(), *works)
    again = drive(make_engine(3), *works)
    answers = [json.loads(ended[seed].text) for seed in range(12)]
    assert all(len(set(answer)) == len(answer) for answer in answers)
    assert drawn_anew
    # Of the answers that were thrown away nothing is counted: "c", quotes, commas, brackets and spaces between.
    assert all(event.completion_tokens <= len(event.text) + 1 for event in ended.values())
    assert [again[seed].text for seed in range(12)] == [ended[seed].text for seed in range(12)]
    greedy = drive(make_engine(), work(1, PROMPT, schema=schema, stream=stream))[1]
    assert isinstance(greedy, Generated) or "repeats an item" in greedy.message
