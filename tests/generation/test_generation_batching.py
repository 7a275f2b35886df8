"""How a model may be batched is found out, and in the way that is found its texts are those it gives alone."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from tests.generation.families import FAMILIES, make

from impetus_backends.generation.batching import Batching, find_batching
from impetus_backends.generation.engine import EngineLimits, GenerationEngine, open_generation_engine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system

BEGINNING = "The small model answers every question with the same confidence. " * 8
PROMPTS = [
    "Hi",
    "The river was quiet and the boats came back",
    BEGINNING + "One",
    "x = 1",
    BEGINNING + "Two of them",
    "é",
]


@pytest.fixture
def of_family(loaded: LoadedModel) -> Callable[..., LoadedModel]:
    def make_one(name: str, seed: int = 0) -> LoadedModel:
        return dataclasses.replace(loaded, model=make(name, loaded.vocabulary_size, seed))

    return make_one


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_the_same_alone_and_in_the_batch_that_the_self_test_chose(
    of_family: Any, family: str, work: Any, drive: Any, info: Any, tiny_folder: Path
) -> None:
    model = of_family(family)
    engine = open_generation_engine(
        tiny_folder, model_name="tiny", aliases=(), limits=EngineLimits(4, prefill_tokens=96), load=lambda folder: model
    )
    assert engine.info.max_concurrent == 4
    assert ("prompts are read one by one" in " ".join(engine.info.reasons)) == (family != "qwen3")
    works = [work(at, prompt, max_tokens=5 + 4 * (at % 3)) for at, prompt in enumerate(PROMPTS)]
    together = {at: event.text for at, event in drive(engine, *works).items()}
    engine.close()
    alone = GenerationEngine(model, info, EngineLimits(1, prefix_cache_bytes=0, prefill_tokens=4096))
    assert {at: event.text for at, event in drive(alone, *works).items()} == together
    alone.close()


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_small_leak_is_seen_whatever_the_weights(of_family: Any, seed: int) -> None:
    finding = find_batching(of_family("nemotron_h", seed))
    assert finding.batching is Batching.READ_APART
    assert "probabilities move by" in str(finding.reason)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_rounding_is_no_leak(of_family: Any, precision: str) -> None:
    import mlx.core as mx

    model = of_family("qwen3", 1)
    model.model.set_dtype(getattr(mx, precision))
    assert find_batching(model).batching is Batching.TOGETHER


def test_a_window_that_forgets_too_much_in_a_batch_is_seen(windowed: LoadedModel) -> None:
    class Forgetful:
        """Once a text is longer than its window, it answers otherwise if others run beside it."""

        def __call__(self, tokens: Any, **options: Any) -> Any:
            logits = windowed.model(tokens, **options)
            longest = max(int(layer.offset.max()) if tokens.shape[0] > 1 else 0 for layer in options["cache"])
            return logits * 0.3 if longest > 70 else logits

        def __getattr__(self, name: str) -> Any:
            return getattr(windowed.model, name)

    assert find_batching(windowed).batching is Batching.TOGETHER
    assert find_batching(dataclasses.replace(windowed, model=Forgetful())).batching is Batching.ONE_AT_A_TIME


def test_prompts_that_are_read_one_by_one_are_read_in_one_step_where_they_fit(
    loaded: LoadedModel, record: Any, work: Any, info: Any
) -> None:
    recorded, calls = record(loaded)
    engine = GenerationEngine(recorded, info, EngineLimits(8, prefill_tokens=64), read_apart=True)
    for at in range(3):
        engine.admit(work(at, "Hello world"[: 5 + at]))
    engine.step()
    reading = [call for call in calls.since_last_time() if call.length > 1]
    assert [call.rows for call in reading] == [1, 1, 1]
    engine.close()
