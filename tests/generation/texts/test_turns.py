"""Two real models in memory that holds one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.generation.engine import EngineLimits
from impetus_backends.generation.opening import open_generation_engine
from impetus_backends.models import ModelFiles
from impetus_backends.pool import ModelPool
from impetus_backends.protocol import Deferred, Generated, Rejected
from tests.paths import DATA

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.generation.engine import GenerationEngine
    from impetus_backends.generation.models.loader import LoadedModel


@pytest.mark.system
def test_two_real_models_take_turns_in_memory_for_one_and_unloading_frees_it(
    loaded: LoadedModel, tiny_folder: Path, work: Any, solo: Any
) -> None:
    import mlx.core as mx

    says = DATA / "models" / "tiny-says"
    files = [ModelFiles("tiny", tiny_folder, ("tiny",)), ModelFiles("says", says, ("says",))]
    weights = [(each.folder / "model.safetensors").stat().st_size for each in files]
    memory_bytes = sum(weights) + 100_000
    before = mx.get_active_memory()
    most: list[int] = []

    def open_one(files: ModelFiles, memory_bytes: int | None) -> GenerationEngine:
        most.append(mx.get_active_memory() - before)
        limits = EngineLimits(4, memory_bytes=memory_bytes)
        return open_generation_engine(files.folder, model_name=files.name, aliases=files.aliases, limits=limits)

    now = [0.0]
    pool = ModelPool(files, weights, open_one, memory_bytes=memory_bytes, max_concurrent=4, clock=lambda: now[0])
    question = "Q: " + (says.parents[1] / "questions.txt").read_text().split("\n")[0].removeprefix("Q: ") + "\nA:"
    waiting = [work(at, ("Hello", question)[at % 2], max_tokens=20, model=("tiny", "says")[at % 2]) for at in range(6)]
    works = {item.id: item for item in waiting}
    texts: dict[int, str] = {}
    for item in waiting:
        pool.admit(item)
    while pool.pending():
        for event in pool.step():
            assert not isinstance(event, Rejected)
            if isinstance(event, Deferred):
                pool.admit(works[event.id])
            if isinstance(event, Generated):
                texts[event.id] = event.text
        now[0] += 1
    assert texts.keys() == works.keys()
    assert {texts[at] for at in (0, 2, 4)} == {solo("Hello", 20)}
    assert len({texts[at] for at in (1, 3, 5)}) == 1
    assert len(most) >= 2
    assert max(most) < 50_000, "a model is loaded when the one before has gone"
    pool.close()
    assert mx.get_active_memory() - before < 50_000
    assert mx.get_cache_memory() == 0


@pytest.mark.system
def test_a_request_that_needs_more_than_its_part_gets_what_idle_models_had(tiny_folder: Path, work: Any) -> None:
    says = DATA / "models" / "tiny-says"
    files = [ModelFiles("tiny", tiny_folder, ("tiny",)), ModelFiles("says", says, ("says",))]
    weights = [(each.folder / "model.safetensors").stat().st_size for each in files]

    def open_one(files: ModelFiles, memory_bytes: int | None) -> GenerationEngine:
        limits = EngineLimits(4, memory_bytes=memory_bytes)
        return open_generation_engine(files.folder, model_name=files.name, aliases=files.aliases, limits=limits)

    pool = ModelPool(files, weights, open_one, memory_bytes=1_900_000, max_concurrent=4)
    large = work(1, "Hello", max_tokens=900)
    pool.admit(work(2, "Hello", max_tokens=2, model="says"))
    while pool.pending():
        pool.step()
    pool.admit(large)
    assert [type(event) for event in pool.step()] == [Deferred], "both are loaded, and half is not enough"
    pool.admit(large)
    events = []
    while pool.pending():
        events += pool.step()
    assert isinstance(events[-1], Generated)
    pool.close()
