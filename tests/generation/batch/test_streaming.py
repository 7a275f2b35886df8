"""What is streamed is what the text begins with, whatever happens to the request and its neighbours."""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.generation import requests as requests_module
from impetus_backends.generation.models.loader import LoadedModel, load
from impetus_backends.generation.texts.detokenize import Detokenizer
from impetus_backends.protocol import Generated, Progress, Rejected, Started
from tests.paths import DATA

if TYPE_CHECKING:
    from collections.abc import Callable

    from impetus_backends.generation.engine import GenerationEngine
    from impetus_backends.protocol import GenerationWork

pytestmark = pytest.mark.system

PROMPTS = ["Hello world", "The river was quiet and the boats", "日本語 🙂", "x = 1", "When the wind had turned", "é"]


@pytest.fixture(scope="module")
def says(loaded: LoadedModel) -> LoadedModel:
    """`loaded` only so that these tests are skipped where MLX is not installed."""
    return load(DATA / "models" / "tiny-says")


def watch(
    engine: GenerationEngine, *works: GenerationWork, after_step: Callable[[int], None] = lambda step: None
) -> dict[int, list[Any]]:
    """Every request's events, in their order."""
    for item in works:
        engine.admit(item)
    heard: dict[int, list[Any]] = {}
    step = 0
    while engine.pending():
        for event in engine.step():
            heard.setdefault(event.id, []).append(event)
        step += 1
        after_step(step)
    return heard


def streamed(events: list[Any]) -> Generated:
    """Checks one streamed request's events, from the first to its end, which is returned."""
    *before, ended = events
    assert isinstance(ended, Generated)
    text = None
    for event in before:
        if isinstance(event, Started):
            text = ""
        else:
            assert isinstance(event, Progress)
            assert text is not None, "a piece came before the start"
            assert event.text
            text += event.text
            text.encode()
            assert not text.endswith("\ufffd")
    assert ended.text.startswith(text or "")
    return ended


def test_random_bytes_are_streamed_whole_and_never_taken_back(make_engine: Any, work: Any, solo: Any) -> None:
    dice = random.Random(1)
    works, stops = [], {}
    for number in range(18):
        prompt = PROMPTS[number % len(PROMPTS)]
        full = solo(prompt, 40) if number < 9 else ""
        at, length = dice.randint(1, 20), dice.randint(1, 6)
        stops[number] = tuple({full[at : at + length], full[at + 1 : at + 4]} - {""})
        hot = {"temperature": 1.5, "seed": number} if number >= 9 else {}
        works.append(work(number, prompt, max_tokens=40, stream=True, stop=stops[number], **hot))
    heard = watch(make_engine(max_concurrent=10), *works)
    ended = {number: streamed(events) for number, events in heard.items()}
    assert len(ended) == 18
    assert sum("\ufffd" in each.text for each in ended.values()) > 4, "these bytes were to be broken"
    for number, event in ended.items():
        assert not any(stop in event.text for stop in stops[number])
        assert event.finish_reason == "stop" if stops[number] else event.finish_reason in {"stop", "length"}
    pieces = [sum(isinstance(event, Progress) for event in events) for events in heard.values()]
    assert sum(pieces) > 18 * 8, "what can be told early is told early"


def test_a_known_answer_is_streamed_as_it_is_made_and_up_to_its_stop_string(
    make_engine: Any, work: Any, says: LoadedModel
) -> None:
    question, answer = (DATA / "questions.txt").read_text(encoding="utf-8").strip().split("\n\n")[0].split("\n")
    answer = answer.removeprefix("A: ")
    words = answer.split()
    assert len(words) > 4
    stop = (f"{words[2]} {words[3]}", "never there")
    works = [work(at, f"{question}\nA:", max_tokens=80, stream=True, stop=((), stop)[at]) for at in range(2)]
    heard = watch(make_engine(loaded=says), *works)
    assert streamed(heard[0]).text.strip() == answer
    assert streamed(heard[1]).text.strip() == answer[: answer.index(stop[0])].strip()
    told = [event for event in heard[0] if isinstance(event, Progress)]
    assert len(told) > len(words) / 2
    assert "".join(event.text for event in told).strip() == answer, "nothing is held back at the end of such a text"


def test_who_did_not_ask_for_a_stream_hears_of_the_start_and_the_end_alone(make_engine: Any, work: Any) -> None:
    heard = watch(make_engine(), work(1, "Hello"), work(2, "Hello", stream=True))
    assert [type(event) for event in heard[1]] == [Started, Generated]
    assert heard[1][-1].text == streamed(heard[2]).text


@pytest.mark.parametrize("failing_call", [2, 9, 21])
def test_a_request_that_runs_again_says_that_it_starts_anew(
    make_engine: Any, work: Any, loaded: LoadedModel, solo: Any, failing_call: int
) -> None:
    class FailsOnce:
        calls = 0

        def __call__(self, tokens: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == failing_call:
                raise RuntimeError("once")
            return loaded.model(tokens, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(loaded.model, name)

    engine = make_engine(loaded=dataclasses.replace(loaded, model=FailsOnce()))
    prompts = PROMPTS[:5]  # which are read together
    heard = watch(engine, *(work(at, prompt, stream=True, logprobs=True) for at, prompt in enumerate(prompts)))
    for at, prompt in enumerate(prompts):
        event = streamed(heard[at])
        assert event.text == solo(prompt)
        logprobs = event.answers[0].logprobs
        assert logprobs is not None
        written = event.completion_tokens - (event.finish_reason == "stop")
        assert len(logprobs) == written, "nothing of the first run is left in the second"
    starts = [sum(isinstance(event, Started) for event in events) for events in heard.values()]
    assert starts == [2] * 5


def test_two_hundred_prompts_that_join_at_random_steps_read_as_they_do_alone(
    make_engine: Any, work: Any, loaded: LoadedModel
) -> None:
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    dice = random.Random(8)
    text = " ".join(PROMPTS) * 8
    lengths = [dice.choice((1, 2, 3, 9, 20, 45, 90, 260)) + dice.randint(0, 20) for _ in range(200)]
    starts = [dice.choice((0, 0, 5, dice.randint(0, len(text) // 4))) for _ in lengths]
    tokens = [dice.randint(1, 6) for _ in lengths]
    works = [
        work(at, text[start : start + length], max_tokens=made, stream=True)
        for at, (start, length, made) in enumerate(zip(starts, lengths, tokens, strict=True))
    ]
    engine = make_engine(max_concurrent=16, prefill_tokens=256)
    arriving = iter(works)
    engine.admit(next(arriving))

    def join(step: int) -> None:
        for _ in range(dice.choice((0, 1, 1, 4, 12))):
            if (item := next(arriving, None)) is not None:
                engine.admit(item)
        while not engine.pending() and (item := next(arriving, None)) is not None:
            engine.admit(item)

    ended = {number: streamed(events) for number, events in watch(engine, after_step=join).items()}
    assert len(ended) == 200
    for item in works:
        prompt = mx.array(loaded.tokenizer.encode(item.prompt))
        alone: list[int] = []
        for token, _ in generate_step(prompt, loaded.model, max_tokens=item.max_tokens):
            if token in loaded.tokenizer.eos_token_ids:
                break
            alone.append(token)
        assert ended[item.id].text == loaded.tokenizer.decode(alone).rstrip("\ufffd"), item.id
    assert sum(event.cached_tokens > 0 for event in ended.values()) > 10, "some begin as others do"


# -- cancelling ------------------------------------------------------------------------------------------------------


def test_a_request_cancelled_at_any_step_ends_once_and_leaves_the_others_alone(
    make_engine: Any, work: Any, solo: Any
) -> None:
    texts = {at: solo(prompt, 12) for at, prompt in enumerate(PROMPTS)}
    long_prompt = "word " * 150
    victims_texts = {20: solo(long_prompt, 20), 21: solo("Hello world", 20), 22: solo("Hello", 20)}
    made: set[bool] = set()
    for at_step in (0, 1, 2, 4, 7, 14):
        engine = make_engine(max_concurrent=6, prefill_tokens=64)
        victims = [
            work(20, long_prompt, max_tokens=30, stream=True),
            work(21, "Hello world", max_tokens=200, stream=True),
            work(22, "Hello", stream=True),
        ]
        works = [work(at, prompt, max_tokens=12) for at, prompt in enumerate(PROMPTS)]

        def cancel(step: int, engine: Any = engine, at_step: int = at_step) -> None:
            if step == at_step:
                for number in (20, 21, 22, 20, 21, 99):
                    engine.cancel(number)

        if at_step == 0:
            for item in victims:
                engine.admit(item)
            cancel(0)
            victims = []
        heard = watch(engine, *victims, *works, after_step=cancel)
        assert {at: streamed(heard[at]).text for at in texts} == texts
        for number in (20, 21, 22):
            event = streamed(heard[number])
            assert event.finish_reason == "cancelled"
            assert victims_texts[number].startswith(event.text)
            made.add(number == 20 and event.text != "")
        assert heard.keys() == {*texts, 20, 21, 22}
        assert engine.pending() == 0
        engine.cancel(20)
        assert (engine.pending(), engine.step()) == (0, [])
    assert made == {False, True}, "the long prompt was to be cancelled while it is read, and after"


def test_who_is_on_trial_or_waits_for_one_can_be_cancelled(
    make_engine: Any, work: Any, loaded: LoadedModel, solo: Any
) -> None:
    class FailsOnce:
        calls = 0

        def __call__(self, tokens: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == 8:
                raise RuntimeError("once")
            return loaded.model(tokens, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(loaded.model, name)

    for number in range(3):  # the first is on trial, the second and third wait for theirs
        model = FailsOnce()
        engine = make_engine(loaded=dataclasses.replace(loaded, model=model))

        def cancel(step: int, engine: Any = engine, model: Any = model, number: int = number) -> None:
            if model.calls == 12:
                engine.cancel(number)

        works = [work(at, prompt, stream=True) for at, prompt in enumerate(PROMPTS[:3])]
        heard = watch(engine, *works, after_step=cancel)
        ended = {at: streamed(events) for at, events in heard.items()}
        assert ended.pop(number).finish_reason == "cancelled"
        assert {at: event.text for at, event in ended.items()} == {at: solo(PROMPTS[at]) for at in ended}


def test_a_cancelled_request_whose_tokens_cannot_become_text_is_rejected_alone(
    make_engine: Any, work: Any, solo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Detokenizer] = []

    class Breaks(Detokenizer):
        def whole(self) -> str:
            if self is made[0]:
                raise KeyError("no such byte")
            return super().whole()

    def make(decoding: Any) -> Detokenizer:
        made.append(Breaks(decoding))
        return made[-1]

    monkeypatch.setattr(requests_module, "Detokenizer", make)
    heard = watch(
        engine := make_engine(),
        work(0, "Hello"),
        work(1, "Hello"),
        after_step=lambda step: engine.cancel(0) if step == 4 else None,
    )
    assert isinstance(heard[0][-1], Rejected)
    assert "turned into text" in heard[0][-1].message
    assert streamed(heard[1]).text == solo("Hello")
