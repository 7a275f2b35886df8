"""How many rows decode together is what a device's own times say."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.generation import row_curves
from impetus_backends.generation.engine import EngineLimits
from impetus_backends.generation.memory import measure_row_cost
from impetus_backends.generation.opening import open_generation_engine
from impetus_backends.generation.row_curves import Bandwidth, RowCurve, bandwidth_here, remember, remembered
from impetus_backends.generation.rows import COUNTS, measure_rows
from impetus_backends.machine.hardware import identify

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
    loaded: LoadedModel, tiny_folder: Path, work: Any, drive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPETUS_CACHE_DIR", str(tmp_path))
    limits = EngineLimits(measure_rows=True)
    engine = open_generation_engine(
        tiny_folder, model_name="tiny", aliases=(), limits=limits, load=lambda folder: loaded
    )
    info = engine.info
    assert info.max_concurrent in COUNTS
    assert str(info.measured).startswith(f"{info.max_concurrent} generations decode together, in steps of ")
    assert info.measured in info.reasons
    assert [(each["model"], each["words"]) for each in remembered()] == [("tiny", info.measured)]
    assert drive(engine, work(1, "Hello", max_tokens=3))[1].completion_tokens == 3
    engine.close()


def test_a_curve_says_how_near_each_count_comes_to_the_memorys_bandwidth() -> None:
    curve = RowCurve(((1, 0.1), (8, 0.2)), 8 * 10**9, 10**9, Bandwidth(100e9, "published"))
    assert [curve.share(rows) for rows in (1, 8)] == pytest.approx([0.9, 0.8])
    assert curve.words.endswith(
        "(tokens/s by rows, and the share of the memory's bandwidth, 100 GB/s, published: 1: 10 at 90%, 8: 40 at 80%)"
    )
    assert RowCurve(curve.points).share(1) is None


def test_a_bandwidth_that_nobody_publishes_is_what_copying_comes_to_and_says_so() -> None:
    ticks = iter(range(100))
    found = bandwidth_here("cpu", lambda: float(next(ticks)))
    assert (found.bytes_s, found.source) == (2 * 128 * 2**20, "as copying an array here came to")


def test_an_apple_gpu_is_held_against_what_is_published_of_its_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = dataclasses.replace(identify(), generation=4, tier="Max")
    monkeypatch.setattr(row_curves, "identify", lambda: chip)
    assert str(bandwidth_here("gpu applegpu_g16s", float)) == "546 GB/s, published"


def test_curves_are_remembered_by_model_the_newest_last_and_damage_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPETUS_CACHE_DIR", str(tmp_path))
    assert remembered() == []
    for number in range(40):
        remember(f"model {number}", RowCurve(((1, 0.1),)))
    remember("model 20", RowCurve(((1, 0.2),)))
    names = [each["model"] for each in remembered()]
    assert names == [*(f"model {each}" for each in range(8, 40) if each != 20), "model 20"]
    assert "200.0 ms" in remembered()[-1]["words"]
    for damaged in ("{", '{"model": 1}', '[1, {"model": "m"}]'):
        (tmp_path / "rows.json").write_text(damaged)
        assert remembered() == []
    monkeypatch.setenv("IMPETUS_CACHE_DIR", str(tmp_path / "rows.json" / "is a file"))
    remember("m", RowCurve(((1, 0.1),)))  # a disk that takes none is no matter
    assert remembered() == []
