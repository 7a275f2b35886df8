"""One request's failure ends that request, and the texts beside it do not change by a character."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.errors import ModelError
from impetus_backends.generation import engine as engine_module
from impetus_backends.generation import requests as requests_module
from impetus_backends.generation.batching import Batching, find_batching
from impetus_backends.generation.engine import EngineLimits
from impetus_backends.generation.models.loader import load
from impetus_backends.generation.opening import open_generation_engine
from impetus_backends.generation.texts.detokenize import Detokenizer
from impetus_backends.protocol import Generated, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from impetus_backends.generation.models.loader import LoadedModel
    from impetus_backends.protocol import EngineInfo

pytestmark = pytest.mark.system

NEIGHBOURS = ["Hello world", "The river was quiet and the boats", "日本語 🙂", "x = 1", "When the wind had turned"]
BAD = 50


class WatchedModel:
    """A model that calls `before(tokens)`, with a numpy-like (rows, tokens) list, before it runs."""

    def __init__(self, model: Any, before: Callable[[list[list[int]]], None]) -> None:
        self._model = model
        self._before = before

    def __call__(self, tokens: Any, **options: Any) -> Any:
        self._before(tokens.tolist())
        return self._model(tokens, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.fixture
def watched(loaded: LoadedModel) -> Callable[[Callable[[list[list[int]]], None]], LoadedModel]:
    return lambda before: dataclasses.replace(loaded, model=WatchedModel(loaded.model, before))


@pytest.fixture(scope="module")
def neighbour_texts(loaded: LoadedModel, info: EngineInfo, work: Any, drive: Any) -> dict[int, str]:
    """What the neighbours are answered when nothing is wrong with anybody."""
    engine = engine_module.GenerationEngine(loaded, info)
    texts = {number: event.text for number, event in drive(engine, *neighbours(work)).items()}
    engine.close()
    return texts


def neighbours(work: Any) -> list[Any]:
    greedy = [work(number, prompt) for number, prompt in enumerate(NEIGHBOURS)]
    return [*greedy, work(len(greedy), "Some words", temperature=0.8, seed=7)]


def only_bad_failed(ended: dict[int, Any], texts: dict[int, str]) -> Rejected:
    assert {number: event.text for number, event in ended.items() if isinstance(event, Generated)} == texts
    assert set(ended) - set(texts) == {BAD}
    bad = ended[BAD]
    assert isinstance(bad, Rejected)
    return bad


def test_a_request_longer_than_the_context_fails_alone_and_names_both_figures(
    make_engine: Any, work: Any, drive: Any, neighbour_texts: Any
) -> None:
    bad = work(BAD, "word " * 300, max_tokens=800)
    ended = drive(make_engine(), bad, *neighbours(work))
    rejected = only_bad_failed(ended, neighbour_texts)
    assert "800 of max_tokens" in rejected.message
    assert "1024" in rejected.message
    assert rejected.permanent


@pytest.mark.parametrize("as_messages", [False, True])
def test_a_text_of_ten_megabytes_is_refused_without_reading_all_of_it(
    make_engine: Any, work: Any, drive: Any, neighbour_texts: Any, loaded: Any, as_messages: bool
) -> None:
    read: list[int] = []

    class Tokenizer:
        def encode(self, text: str, **options: Any) -> Any:
            read.append(len(text))
            return loaded.tokenizer.encode(text, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(loaded.tokenizer, name)

    text = "word " * 2_000_000
    bad = work(BAD, None, messages=(("user", text),)) if as_messages else work(BAD, text)
    ended = drive(make_engine(loaded=dataclasses.replace(loaded, tokenizer=Tokenizer())), bad, *neighbours(work))
    rejected = only_bad_failed(ended, neighbour_texts)
    assert "10,000,000 characters" in rejected.message
    assert "1024" in rejected.message
    assert max(read) < 10_000


def test_a_request_that_just_fits_the_context_is_served(make_engine: Any, work: Any, drive: Any, loaded: Any) -> None:
    prompt = "word " * 150
    length = len(loaded.tokenizer.encode(prompt))
    engine = make_engine()
    assert isinstance(drive(engine, work(1, prompt, max_tokens=1024 - length))[1], Generated)
    assert isinstance(drive(engine, work(1, prompt, max_tokens=1025 - length))[1], Rejected)


@pytest.mark.parametrize(
    ("prompt", "changes", "words"),
    [
        ("", {}, "empty"),
        (None, {}, "neither"),
        ("a half \ud800 pair", {}, "cannot read the prompt"),
        ("Hello", {"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_a_request_that_cannot_be_read_fails_alone(
    make_engine: Any,
    work: Any,
    drive: Any,
    neighbour_texts: Any,
    prompt: str | None,
    changes: dict[str, Any],
    words: str,
) -> None:
    ended = drive(make_engine(), work(BAD, prompt, **changes), *neighbours(work))
    assert words in only_bad_failed(ended, neighbour_texts).message


def test_messages_to_a_model_without_a_chat_template_fail_alone_and_say_what_to_send(
    make_engine: Any, work: Any, drive: Any, neighbour_texts: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "plain")
    (folder / "chat_template.jinja").unlink()
    bad = work(BAD, None, messages=(("user", "Hello"),))
    ended = drive(make_engine(loaded=load(folder)), *neighbours(work), bad)
    assert "send `prompt`" in only_bad_failed(ended, neighbour_texts).message


def test_messages_that_the_chat_template_refuses_fail_alone_with_its_words(
    make_engine: Any, work: Any, drive: Any, neighbour_texts: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "strict")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    bad = work(BAD, None, messages=(("user", "Hello"),))
    ended = drive(make_engine(loaded=load(folder)), *neighbours(work), bad)
    assert "roles must alternate" in only_bad_failed(ended, neighbour_texts).message


def test_a_request_whose_own_processor_raises_fails_alone(
    make_engine: Any, work: Any, drive: Any, neighbour_texts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def penalty(value: float) -> Any:
        def process(tokens: Any, logits: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= 3:
                raise ZeroDivisionError("the processor is broken")
            return logits

        return process

    monkeypatch.setattr(requests_module, "repetition_penalty", penalty)
    ended = drive(make_engine(), *neighbours(work), work(BAD, "bad", repetition_penalty=1.5))
    assert "the processor is broken" in only_bad_failed(ended, neighbour_texts).message


def test_a_request_on_which_the_model_raises_fails_alone(
    make_engine: Any, work: Any, drive: Any, neighbour_texts: Any, loaded: Any, watched: Any
) -> None:
    (poison,) = loaded.tokenizer.encode("\x00")

    def before(tokens: list[list[int]]) -> None:
        if any(poison in row for row in tokens):
            raise RuntimeError("the device met a poisoned token")

    ended = drive(make_engine(loaded=watched(before)), *neighbours(work), work(BAD, "bad \x00 token"))
    assert "poisoned token" in only_bad_failed(ended, neighbour_texts).message


@pytest.mark.parametrize("failing_call", [1, 2, 9, 20])
def test_a_device_that_fails_once_costs_no_request(
    make_engine: Any, work: Any, drive: Any, neighbour_texts: Any, watched: Any, failing_call: int
) -> None:
    calls = 0

    def before(tokens: list[list[int]]) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise RuntimeError("once")

    ended = drive(make_engine(loaded=watched(before)), *neighbours(work))
    assert {number: event.text for number, event in ended.items()} == neighbour_texts


def test_requests_that_fail_only_together_are_all_served(
    make_engine: Any, work: Any, drive: Any, neighbour_texts: Any, watched: Any
) -> None:
    def before(tokens: list[list[int]]) -> None:
        if len(tokens) > 3:
            raise RuntimeError("out of memory")

    ended = drive(make_engine(loaded=watched(before)), *neighbours(work))
    assert {number: event.text for number, event in ended.items()} == neighbour_texts


def test_a_device_that_always_fails_rejects_every_request_and_ends(
    make_engine: Any, work: Any, drive: Any, watched: Any
) -> None:
    def before(tokens: list[list[int]]) -> None:
        raise RuntimeError("the device is gone")

    ended = drive(make_engine(loaded=watched(before)), *neighbours(work))
    assert all(isinstance(event, Rejected) and "the device is gone" in event.message for event in ended.values())


@pytest.mark.parametrize("changes", [{}, {"stream": True}, {"stop": ("never there",)}])
def test_tokens_that_cannot_become_text_fail_alone(
    make_engine: Any,
    work: Any,
    drive: Any,
    neighbour_texts: Any,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    made = 0

    class Broken:
        def decode(self, tokens: list[int]) -> str:
            raise KeyError("no such byte")

        def __getattr__(self, name: str) -> Any:
            raise KeyError("no such byte")

    def make(decoding: Any) -> Detokenizer:
        nonlocal made
        made += 1
        return Detokenizer(Broken() if made == 3 else decoding)  # type: ignore[arg-type]

    monkeypatch.setattr(requests_module, "Detokenizer", make)
    works = neighbours(work)
    ended = drive(make_engine(), *works[:2], work(BAD, "bad", **changes), *works[2:])
    assert "turned into text" in only_bad_failed(ended, neighbour_texts).message


def test_a_suspect_can_be_cancelled_while_another_is_on_trial(
    make_engine: Any, work: Any, watched: Any, solo: Any
) -> None:
    calls = 0

    def before(tokens: list[list[int]]) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise RuntimeError("once")

    engine = make_engine(loaded=watched(before))
    for item in neighbours(work)[:3]:
        engine.admit(item)
    while calls < 8:
        assert not any(isinstance(event, Generated | Rejected) for event in engine.step())
    engine.cancel(1)
    texts: dict[int, str] = {}
    while engine.pending():
        texts |= {event.id: event.text for event in engine.step() if isinstance(event, Generated)}
    del texts[1]
    assert texts == {number: solo(NEIGHBOURS[number]) for number in (0, 2)}


class LeakingModel(WatchedModel):
    """Answers otherwise in a batch than alone, as an architecture does that reads its padding."""

    def __call__(self, tokens: Any, **options: Any) -> Any:
        logits = self._model(tokens, **options)
        return logits if tokens.shape[0] == 1 else logits * 0.3


def test_a_model_that_answers_otherwise_in_a_batch_is_run_one_request_at_a_time(
    loaded: Any, work: Any, drive: Any, tiny_folder: Path, solo: Any
) -> None:
    leaking = dataclasses.replace(loaded, model=LeakingModel(loaded.model, lambda tokens: None))
    engine = open_generation_engine(
        tiny_folder, model_name="tiny", aliases=(), limits=EngineLimits(8), load=lambda folder: leaking
    )
    (reason,) = engine.info.reasons
    assert "one at a time" in reason
    ended = drive(engine, work(1, "Hello world"), work(2, "x = 1"))
    assert [ended[1].text, ended[2].text] == [solo("Hello world"), solo("x = 1")]
    engine.close()


def test_a_model_that_cannot_run_a_batch_is_run_one_request_at_a_time(watched: Any) -> None:
    def before(tokens: list[list[int]]) -> None:
        if len(tokens) > 1:
            raise ValueError("no batches here")

    finding = find_batching(watched(before))
    assert finding.batching is Batching.ONE_AT_A_TIME
    assert finding.reason is not None
    assert "no batches here" in finding.reason


def test_a_model_that_cannot_generate_at_all_does_not_open(watched: Any) -> None:
    def before(tokens: list[list[int]]) -> None:
        raise ValueError("no kernel for this")

    with pytest.raises(ModelError, match="cannot generate: no kernel for this"):
        find_batching(watched(before))


def test_a_model_whose_probabilities_are_not_numbers_does_not_open(loaded: Any) -> None:
    class BrokenModel(WatchedModel):
        def __call__(self, tokens: Any, **options: Any) -> Any:
            return self._model(tokens, **options) * float("nan")

    with pytest.raises(ModelError, match="NaN"):
        find_batching(dataclasses.replace(loaded, model=BrokenModel(loaded.model, lambda tokens: None)))
