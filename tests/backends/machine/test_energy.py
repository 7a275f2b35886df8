"""What the chip used, by recorded answers of whoever measures it."""

from __future__ import annotations

import json
import sys
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from impetus_backends.dispatcher import open_engine
from impetus_backends.embedding.engine import EmbeddingEngine
from impetus_backends.engine_config import EngineConfig
from impetus_backends.generation.metered import MeteredEngine
from impetus_backends.machine.energy import MacmonMeter, RaplMeter, Used, ZeusMeter, open_meter
from impetus_backends.protocol import Embedded, EmbeddingWork, Generated, GenerationWork, Rejected
from tests.paths import DATA

from ..embedding.test_embedding_engine import INFO, ROWS, FakeBackend, right

if TYPE_CHECKING:
    from pathlib import Path

RANGE_UJ = 262_143_328_850


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """The kernel's folder of a machine with two packages, each with a part that is counted in it already."""
    for zone, used in (("intel-rapl:0", 5_000_000), ("intel-rapl:0:0", 4_000_000), ("intel-rapl:1", RANGE_UJ - 10)):
        folder = tmp_path / zone
        folder.mkdir()
        (folder / "energy_uj").write_text(f"{used}\n")
        (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def test_packages_are_added_up_and_counted_on_where_a_counter_begins_anew(powercap: Path) -> None:
    meter = RaplMeter(powercap)
    assert meter.joules() == 0
    (powercap / "intel-rapl:0/energy_uj").write_text("7500000")
    assert meter.joules() == 2.5
    (powercap / "intel-rapl:1/energy_uj").write_text("999990")
    assert meter.joules() == 3.5


def test_where_nothing_measures_or_may_be_read_there_is_no_meter(tmp_path: Path, powercap: Path) -> None:
    assert open_meter("linux", tmp_path / "nowhere") is None
    assert open_meter("linux", powercap) is not None
    (powercap / "intel-rapl:0/energy_uj").write_text("?")
    assert open_meter("linux", powercap) is None
    assert open_meter("darwin") is None, "neither zeus-apple-silicon nor macmon is installed here"


class RecordedMonitor:
    """`AppleEnergyMonitor`, of a chip that does not tell what its memory uses."""

    def __init__(self, *used: dict[str, int | None]) -> None:
        self._used = list(used)
        self._open: list[str] = []

    def begin_window(self, label: str) -> None:
        if label in self._open:
            raise RuntimeError(f"window {label} was begun already")
        self._open.append(label)

    def end_window(self, label: str) -> Any:
        self._open.remove(label)
        if not self._used:
            raise RuntimeError("IOReport gave no sample")
        return SimpleNamespace(**self._used.pop(0))


def test_what_zeus_counts_is_added_up_window_by_window() -> None:
    parts = {"cpu_total_mj": 1200, "gpu_mj": 300, "ane_mj": 500, "dram_mj": None, "performance_cores_mj": 1100}
    meter = ZeusMeter(RecordedMonitor(parts, parts))
    assert [meter.joules(), meter.joules()] == [2.0, 4.0]
    with pytest.raises(OSError, match="zeus-apple-silicon: IOReport gave no sample"):
        meter.joules()


def test_what_macmon_samples_is_power_times_time() -> None:
    lines = ["no JSON", json.dumps({"all_power": "?"}), json.dumps({"all_power": 12.5, "ane_power": 1.0})]
    program = f"import sys, time\nprint({chr(10).join(lines)!r}, flush=True)\ntime.sleep(60)"
    now = 100.0
    meter = MacmonMeter([sys.executable, "-c", program], clock=lambda: now)
    try:
        assert meter.heard.wait(60)
        now = 102.0
        assert meter.joules() == 25.0
        now = 104.0
        assert meter.joules() == 50.0
        now = 105.1
        with pytest.raises(OSError, match="macmon has said nothing for 5 s"):
            meter.joules()
    finally:
        meter.close()


def test_joules_are_told_for_a_thousand() -> None:
    used = Used(joules=3.0, texts=500, tokens=60_000)
    assert (used.per_1000_texts, used.per_1000_tokens) == (6.0, 0.05)


class Counter:
    """A meter that tells these, and then nothing more."""

    source = "counter"

    def __init__(self, *joules: float) -> None:
        self._joules = list(joules)

    def joules(self) -> float:
        if not self._joules:
            raise OSError("it is gone")
        return self._joules.pop(0)


def test_a_batch_says_what_was_used_meanwhile_and_runs_without_where_the_meter_fails() -> None:
    engine = EmbeddingEngine(FakeBackend(right), INFO, meter=Counter(1.0, 3.5, 4.0))
    energies = []
    for number in range(3):
        engine.admit(EmbeddingWork(number, ROWS))
        (event,) = engine.step()
        assert isinstance(event, Embedded)
        assert np.isfinite(event.vectors).all()
        energies.append(event.energy_j)
    assert energies == [2.5, None, None]


# -- of generations --------------------------------------------------------------------------------------------------


class Steady:
    """Uses six joules in each step, until it breaks."""

    source = "steady"

    def __init__(self, looks: int = 1000) -> None:
        self._used = count(0, 6)
        self._looks = looks

    def joules(self) -> float:
        self._looks -= 1
        if self._looks < 0:
            raise OSError("gone")
        return float(next(self._used))


def metered(meter: Steady) -> MeteredEngine:
    config = EngineConfig(kind="generation", backend="simulated", simulated_a_s=0)
    return MeteredEngine(open_engine(config), meter)


def ask(engine: MeteredEngine, number: int, max_tokens: int, **more: Any) -> None:
    engine.admit(GenerationWork(number, f"prompt {number}", None, max_tokens=max_tokens, ignore_eos=True, **more))


def ended(engine: MeteredEngine) -> dict[int, Generated]:
    found: dict[int, Generated] = {}
    while engine.pending():
        found |= {event.id: event for event in engine.step() if isinstance(event, Generated)}
    return found


def test_of_each_step_every_generation_in_it_has_an_even_part() -> None:
    engine = metered(Steady())
    for number, tokens in ((1, 3), (2, 6)):
        ask(engine, number, tokens)
    made = ended(engine)
    steps = [made[each].completion_tokens for each in (1, 2)]
    assert steps[0] < steps[1]
    shared, alone = steps[0], steps[1] - steps[0]
    assert made[1].energy_j == pytest.approx(3 * shared)
    assert made[2].energy_j == pytest.approx(3 * shared + 6 * alone)


def test_who_has_not_begun_uses_nothing_and_who_is_called_off_tells_what_it_used() -> None:
    engine = metered(Steady())
    ask(engine, 1, 50)
    for _ in range(4):
        engine.step()
    ask(engine, 2, 50)
    for each in (1, 2):
        engine.cancel(each)
    made = ended(engine)
    assert made[1].energy_j == pytest.approx(6 * 4)
    assert not made[2].energy_j


def test_a_meter_that_breaks_measures_no_generation_in_part() -> None:
    engine = metered(Steady(looks=5))
    ask(engine, 1, 8)
    assert ended(engine)[1].energy_j is None
    ask(engine, 2, 4)
    assert ended(engine)[2].energy_j is None


def test_what_is_refused_is_told_as_it_is_and_forgotten() -> None:
    engine = metered(Steady())
    ask(engine, 1, 8, schema="{}")
    (event,) = engine.step()
    assert isinstance(event, Rejected)
    ask(engine, 2, 2)
    assert ended(engine)[2].energy_j == pytest.approx(6 * 2)


def test_generations_are_metered_where_the_machine_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(kind="generation", model=str(DATA / "models" / "tiny-says"), backend="mlx")
    monkeypatch.setattr("impetus_backends.dispatcher.open_meter", Steady)
    engine = open_engine(config)
    assert isinstance(engine, MeteredEngine)
    ask(engine, 1, 4)
    assert (ended(engine)[1].energy_j or 0) > 0
    engine.close()
