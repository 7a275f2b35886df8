"""Probabilities that are not numbers end the request they belong to, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.generation.batch.sampling import NO_TOKEN, likeliest
from impetus_backends.protocol import Generated, Progress, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable

    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system

NEIGHBOURS = ["Hello world", "The river was quiet and the boats", "日本語 🙂", "x = 1"]
POISON = "\x00"
BAD = 50


class PoisonedModel:
    """A model that harms the logits of every row whose text so far, or last piece of it, holds the poisoned token."""

    def __init__(self, loaded: LoadedModel, harm: Callable[[Any], Any]) -> None:
        (self._poison,) = loaded.tokenizer.encode(POISON)
        self._model, self._harm = loaded.model, harm

    def __call__(self, tokens: Any, **options: Any) -> Any:
        import mlx.core as mx

        logits = self._model(tokens, **options)
        poisoned = (tokens == self._poison).any(axis=1)[:, None, None]
        return mx.where(poisoned, self._harm(logits), logits)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def one_infinite(logits: Any) -> Any:
    import mlx.core as mx

    quote = 4  # which the schema below does not forbid
    return mx.where(mx.arange(logits.shape[-1]) == quote, math.inf, logits)


HARMS: dict[str, Callable[[Any], Any]] = {
    "NaN": lambda logits: logits * math.nan,
    "infinity": lambda logits: logits * 0 + math.inf,
    "minus infinity": lambda logits: logits * 0 - math.inf,
    "one infinity": one_infinite,
}


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_no_token_is_the_likeliest_of_a_row_without_numbers(bad: float) -> None:
    import mlx.core as mx

    # After plus infinity all others are minus infinity, and which of the two is drawn is the device's affair.
    assert likeliest(mx.array([[0.0, -1.0], [bad, bad]])).tolist() == [0, NO_TOKEN]


@pytest.fixture(params=HARMS, scope="module")
def poisoned(request: pytest.FixtureRequest, loaded: LoadedModel) -> LoadedModel:
    return dataclasses.replace(loaded, model=PoisonedModel(loaded, HARMS[request.param]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 1.0, "seed": 1, "top_p": 0.9},
        {"logprobs": True, "stream": True},
        {"schema": '{"type": "string"}'},
        {"repetition_penalty": 1.5},
        {"max_tokens": 1},
    ],
    ids=["greedy", "drawn", "streamed with logprobs", "schema", "penalty", "one token"],
)
def test_a_request_whose_probabilities_are_not_numbers_fails_alone_with_one_sentence(
    make_engine: Any, work: Any, drive: Any, solo: Any, poisoned: LoadedModel, changes: dict[str, Any]
) -> None:
    engine = make_engine(loaded=poisoned)
    neighbours = [work(at, prompt, logprobs=True) for at, prompt in enumerate(NEIGHBOURS)]
    ended = drive(engine, *neighbours[:2], work(BAD, f"bad {POISON}", **changes), *neighbours[2:])
    bad = ended.pop(BAD)
    assert isinstance(bad, Rejected)
    assert "are not numbers (NaN)" in bad.message
    assert "\n" not in bad.message
    assert {at: event.text for at, event in ended.items()} == {at: solo(each) for at, each in enumerate(NEIGHBOURS)}
    for event in ended.values():
        assert all(math.isfinite(each.logprob) for each in event.answers[0].logprobs)
        json.dumps(dataclasses.asdict(event), allow_nan=False, default=list)


def test_numbers_that_end_in_the_middle_of_an_answer_end_it_there(
    make_engine: Any, work: Any, loaded: LoadedModel, solo: Any
) -> None:
    from_then_on: list[int] = []

    class Failing:
        """Computes numbers for two steps after a prompt was read, and then none for its first row."""

        def __call__(self, tokens: Any, **options: Any) -> Any:
            import mlx.core as mx

            logits = loaded.model(tokens, **options)
            from_then_on.append(len(from_then_on))
            first = (mx.arange(tokens.shape[0]) == 0)[:, None, None]
            return mx.where(first, math.nan, logits) if len(from_then_on) == 7 else logits

        def __getattr__(self, name: str) -> Any:
            return getattr(loaded.model, name)

    engine = make_engine(loaded=dataclasses.replace(loaded, model=Failing()))
    for at, prompt in enumerate(NEIGHBOURS[:3]):
        engine.admit(work(at, prompt, stream=True))
    heard: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    while engine.pending():
        for event in engine.step():
            heard[event.id].append(event)
    bad = [at for at, events in heard.items() if isinstance(events[-1], Rejected)]
    assert len(bad) == 1
    (rejected,) = [event for event in heard[bad[0]] if isinstance(event, Rejected)]
    assert "after" in rejected.message
    assert sum(isinstance(event, Progress) for event in heard[bad[0]]) > 0
    for at, events in heard.items():
        if at not in bad:
            assert isinstance(events[-1], Generated)
            assert events[-1].text == solo(NEIGHBOURS[at])


def test_what_was_read_when_numbers_ended_is_not_where_another_prompt_begins(
    make_engine: Any, work: Any, drive: Any, loaded: LoadedModel, solo: Any
) -> None:
    beginning = "The river was quiet. " * 30

    class NoNumbersOnce:
        """Its device loses a value of the first prompt's keys and values: what is made of them later is not right."""

        calls = 0

        def __call__(self, tokens: Any, **options: Any) -> Any:
            self.calls += 1
            logits = loaded.model(tokens, **options)
            if self.calls == 1:
                for layer in options["cache"]:
                    layer.values = layer.values * math.nan
            return logits

        def __getattr__(self, name: str) -> Any:
            return getattr(loaded.model, name)

    engine = make_engine(loaded=dataclasses.replace(loaded, model=NoNumbersOnce()))
    assert isinstance(drive(engine, work(1, beginning + "a"))[1], Rejected)
    assert drive(engine, work(2, beginning + "b"))[2].text == solo(beginning + "b")
