"""How many rows decode together is what a device's own times say."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.generation.engine import EngineLimits
from impetus_backends.generation.memory import measure_row_cost
from impetus_backends.generation.opening import open_generation_engine
from impetus_backends.generation.rows import COUNTS, RowCurve, measure_rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system


class Device:
    """The tiny model on a device whose steps take as long as it is told: a staircase, as MLX's do."""

    def __init__(self, model: Any, step_s: Callable[[int], float]) -> None:
        self._model, self._step_s = model, step_s
        self.now = 0.0
        self.read: list[tuple[int, ...]] = []

    def __call__(self, tokens: Any, **options: Any) -> Any:
        rows, length = tokens.shape
        if length == 1:
            self.now += self._step_s(rows)
        else:
            self.read.append((rows, length))
        return self._model(tokens, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def measured(loaded: LoadedModel, step_s: Callable[[int], float], **options: Any) -> tuple[RowCurve, Device]:
    device = Device(loaded.model, step_s)
    curve = measure_rows(dataclasses.replace(loaded, model=device), clock=lambda: device.now, **options)
    return curve, device


@pytest.mark.parametrize(
    ("step_s", "chosen", "timed"),
    [
        (lambda rows: 0.02, 48, 48),  # more rows cost nothing
        (lambda rows: 0.01 * rows, 1, 12),  # each costs as much as the first: a step of 12 is too long
        (lambda rows: 0.02 if rows <= 8 else 0.06 if rows <= 32 else 0.2, 32, 48),
        (lambda rows: 0.02 if rows <= 12 else 0.09, 12, 48),  # 48 make 533 tokens/s, and 12 make 600
        (lambda rows: 0.5 + 0.01 * rows, 48, 48),  # a slow device: no more than four times as long as one
        (lambda rows: 0.5 * rows, 1, 8),
    ],
)
def test_the_most_tokens_a_second_in_short_steps_are_chosen_of_a_staircase(
    loaded: LoadedModel, step_s: Callable[[int], float], chosen: int, timed: int
) -> None:
    curve, device = measured(loaded, step_s)
    assert (curve.chosen, curve.points[-1][0]) == (chosen, timed)
    assert [rows for rows, _ in curve.points] == [each for each in COUNTS if each <= timed]
    assert all(found == pytest.approx(step_s(rows)) for rows, found in curve.points)
    assert len(device.read) <= 3, "the prompt is read once, beside what finds out what a row costs"


def test_no_more_rows_are_tried_than_there_is_memory_for(loaded: LoadedModel) -> None:
    bytes_of_eight = measure_row_cost(loaded.model).batch_bytes(8, 320)
    curve, _ = measured(loaded, lambda rows: 0.02, spare_bytes=2 * bytes_of_eight)
    assert (curve.chosen, curve.points[-1][0]) == (8, 8)
    assert measured(loaded, lambda rows: 0.02, spare_bytes=0)[0].chosen == 1


def test_an_engine_that_measures_says_what_it_found_and_runs_so_many(
    loaded: LoadedModel, tiny_folder: Path, work: Any, drive: Any
) -> None:
    limits = EngineLimits(measure_rows=True)
    engine = open_generation_engine(
        tiny_folder, model_name="tiny", aliases=(), limits=limits, load=lambda folder: loaded
    )
    info = engine.info
    assert info.max_concurrent in COUNTS
    assert str(info.measured).startswith(f"{info.max_concurrent} generations decode together, in steps of ")
    assert info.measured in info.reasons
    assert drive(engine, work(1, "Hello", max_tokens=3))[1].completion_tokens == 3
    engine.close()
