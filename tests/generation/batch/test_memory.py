"""No batch holds more than was counted for it, and what has no room is told so."""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.errors import ModelError
from impetus_backends.generation.memory import STEP_TOKENS, Budget, RowCost, measure_row_cost, weights_bytes
from impetus_backends.protocol import Deferred, Generated, Rejected, Started

if TYPE_CHECKING:
    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system


@pytest.fixture(params=["loaded", "windowed", "recurrent"])
def any_model(request: pytest.FixtureRequest) -> LoadedModel:
    model: LoadedModel = request.getfixturevalue(request.param)
    return model


def prompt_of(loaded: LoadedModel, tokens: int) -> str:
    prompt = "\x00" * tokens  # which no merge has
    assert len(loaded.tokenizer.encode(prompt)) == tokens
    return prompt


def test_a_batch_never_holds_more_than_its_rows_were_counted_for(
    any_model: LoadedModel, make_engine: Any, work: Any, record: Any
) -> None:
    loaded, recorded = record(any_model)
    cost = measure_row_cost(any_model.model)
    engine = make_engine(6, loaded=loaded, prefill_tokens=64, prefix_cache_bytes=0)
    dice = random.Random(4)
    # Around the caches' steps and the window; long ones that leave short ones behind, and short ones that wait.
    sizes = [(1, 1), (1, 70), (255, 2), (256, 3), (257, 3), (130, 130), (300, 5), (3, 300), (64, 4), (63, 66), (513, 2)]
    sizes += [(dice.randint(1, 300), dice.randint(1, 40)) for _ in range(5)]
    works = [work(at, prompt_of(loaded, prompt), max_tokens=tokens) for at, (prompt, tokens) in enumerate(sizes)]
    for item in works:
        engine.admit(item)
    running: dict[int, int] = {}
    nearest = 0.0
    while engine.pending():
        events = engine.step()
        running |= {event.id: sum(sizes[event.id]) for event in events if isinstance(event, Started)}
        counted = cost.batch_bytes(len(running), max(running.values()))
        held = max(call.cache_bytes for call in recorded.since_last_time() if call.length == 1)
        assert held <= counted
        nearest = max(nearest, held / counted)
        for event in events:
            if isinstance(event, Generated):
                del running[event.id]
    assert nearest > 0.4, "what is counted is far more than what is ever held"


@pytest.mark.parametrize("tokens", [1, 256, 600])
def test_one_row_costs_what_it_is_said_to_or_a_little_less(any_model: LoadedModel, record: Any, tokens: int) -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    cost = measure_row_cost(any_model.model)
    cache = make_prompt_cache(any_model.model)
    for at in range(0, tokens, 100):
        any_model.model(mx.zeros((1, min(100, tokens - at)), dtype=mx.int32), cache=cache)
    for _ in range(3):
        any_model.model(mx.zeros((1, 1), dtype=mx.int32), cache=cache)
    held = sum(layer.nbytes for layer in cache)
    assert held <= cost.batch_bytes(1, tokens + 3) <= held + (STEP_TOKENS + 64) * cost.token_bytes + cost.fixed_bytes


def test_a_window_counts_in_full_and_does_not_grow(loaded: LoadedModel, windowed: LoadedModel, recurrent: Any) -> None:
    one_layer = 2 * 16 * 4  # keys and values of one head, float32
    assert measure_row_cost(windowed.model) == RowCost(64 * one_layer, one_layer)
    assert measure_row_cost(recurrent.model) == RowCost(2 * 32 * 4, one_layer)
    assert measure_row_cost(loaded.model) == RowCost(0, 2 * 2 * one_layer)


def test_a_model_that_cannot_be_measured_is_refused_with_the_reason(
    make_engine: Any, loaded: LoadedModel, record: Any
) -> None:
    class Broken:
        layers = loaded.model.layers

        def __call__(self, tokens: Any, **options: Any) -> Any:
            raise ValueError("no kernel for this")

        def parameters(self) -> Any:
            return {}

    with pytest.raises(ModelError, match="no kernel for this"):
        make_engine(loaded=dataclasses.replace(loaded, model=Broken()), memory_bytes=2**20)


def test_a_model_whose_weights_fill_the_memory_is_refused(make_engine: Any, loaded: LoadedModel) -> None:
    with pytest.raises(ModelError, match="nothing is left to run it with"):
        make_engine(memory_bytes=weights_bytes(loaded.model))


def limit_for(loaded: LoadedModel, rows: int, tokens: int) -> dict[str, int]:
    """The limits under which just so many rows of so many tokens run together."""
    room = measure_row_cost(loaded.model).batch_bytes(rows, tokens)
    return {"memory_bytes": weights_bytes(loaded.model) + room, "prefix_cache_bytes": 0}


def test_a_request_that_could_never_fit_is_refused_with_both_figures_and_the_others_finish(
    make_engine: Any, work: Any, drive: Any, loaded: LoadedModel, solo: Any
) -> None:
    engine = make_engine(**limit_for(loaded, 2, 100))
    just_fits = 2 * (100 + STEP_TOKENS) - STEP_TOKENS
    ended = drive(
        engine,
        work(1, "Hello"),
        work(2, prompt_of(loaded, just_fits - 9), max_tokens=10),
        work(3, prompt_of(loaded, just_fits - 10), max_tokens=10),
        work(4, "x = 1"),
    )
    needed = measure_row_cost(loaded.model).batch_bytes(1, just_fits + 1)
    assert isinstance(ended[2], Rejected)
    assert f"{just_fits + 1:,} tokens" in ended[2].message
    assert f"{needed / 2**20:,.1f} MiB" in ended[2].message
    assert f"{measure_row_cost(loaded.model).batch_bytes(2, 100) / 2**20:,.1f} MiB" in ended[2].message
    assert isinstance(ended[3], Deferred)
    assert [ended[1].text, ended[4].text] == [solo("Hello"), solo("x = 1")]
    alone = drive(engine, work(3, prompt_of(loaded, just_fits - 10), max_tokens=10))[3]
    assert isinstance(alone, Generated)


def test_a_request_with_no_room_now_is_handed_back_and_forgotten_and_runs_when_it_comes_again(
    make_engine: Any, work: Any, loaded: LoadedModel, solo: Any
) -> None:
    engine = make_engine(**limit_for(loaded, 2, 40))
    for number in range(3):
        engine.admit(work(number, "Hello", max_tokens=20))
    first = engine.step()
    assert first[-1] == Deferred(2)
    assert [event.id for event in first if isinstance(event, Started)] == [0, 1]
    assert engine.pending() == 2
    engine.cancel(2)
    assert engine.pending() == 2, "it is nobody's any more"
    engine.cancel(0)
    engine.admit(work(2, "Hello", max_tokens=20))
    events = [event for _ in range(30) for event in (engine.step() if engine.pending() else [])]
    assert [event.text for event in events if isinstance(event, Generated) and event.id == 2] == [solo("Hello", 20)]
    assert not any(isinstance(event, Deferred | Rejected) for event in events)


def test_a_limit_taken_back_is_told_and_holds_for_what_comes(make_engine: Any, work: Any, loaded: LoadedModel) -> None:
    engine = make_engine(prefix_cache_bytes=0)
    for number in range(2):
        engine.admit(work(number, "Hello", max_tokens=20))
    engine.step()
    room = measure_row_cost(loaded.model).batch_bytes(1, 40)
    assert not engine.resize(room), "two run where there is room for one"
    engine.admit(work(2, "Hello", max_tokens=20))
    assert engine.step() == [Deferred(2)]
    engine.cancel(0)
    assert engine.resize(room)
    assert engine.resize(None)
    engine.admit(work(3, "Hello", max_tokens=900))
    assert Started(3) in engine.step()


def test_a_budget_counts_rows_by_the_longest() -> None:
    budget = Budget(RowCost(10, 2), 4 * (10 + 2 * (50 + STEP_TOKENS)))
    assert budget.allows([50, 1, 1, 50])
    assert not budget.allows([51, 1, 1, 1])
    assert not budget.allows([1] * 5 + [40])
    assert budget.allows([])
    assert Budget(RowCost(10, 2), None).allows([10**9])
