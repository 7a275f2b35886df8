"""The engine that comes of the policy: what says no, what is next, what was measured."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from impetus_backends.candidates import Means
from impetus_backends.dispatcher import get_compute_dispatcher, measure_embedding, open_embedding, open_engine
from impetus_backends.embedding.devices.reference import NumpyEmbeddingBackend
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.engine_config import EngineConfig, Excluded
from impetus_backends.errors import BackendUnavailableError, ModelError
from impetus_backends.machine.measurements import MeasurementCache, standard_batch
from impetus_backends.protocol import Embedded, EmbeddingWork
from tests.backends.conftest import small_model
from tests.backends.machine.machines import machine, nothing_missing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.machine.hardware import Hardware

MODEL = str(small_model("bge"))
AUTO = EngineConfig("embedding", MODEL)


class Imitation(NumpyEmbeddingBackend):
    """The reference under another name, with a fault or a delay: a device as the dispatcher sees it."""

    def __init__(self, config: EmbeddingConfig, name: str, clock: Clock, fault: Exception | str | None) -> None:
        super().__init__(config)
        self.name = name
        self.device = "ane" if name == "coreml" else name
        self._clock = clock
        self._fault = fault

    def load(self) -> None:
        if isinstance(self._fault, Exception):
            raise self._fault
        super().load()

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        self._clock.embedded.append(self.name)
        if self._fault == "dies when timed" and len(rows) == 32:
            raise RuntimeError("the device went away")
        vectors = super().embed(rows)
        return -vectors if self._fault == "wrong" else vectors


class Clock:
    """Stands in for the devices' speed."""

    def __init__(self, **seconds: float) -> None:
        self._seconds = seconds
        self._now = 0.0
        self.embedded: list[str] = []

    def __call__(self) -> float:
        if self.embedded:
            self._now += self._seconds.get(self.embedded.pop(), 1.0)
            self.embedded.clear()
        return self._now


class Bench:
    """A machine whose devices are imitations."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, Exception | str] = {}
        self.clock = Clock(coreml=0.010, mlx=0.020, cpu=0.5)
        self.memory_bytes: dict[str, int] = {}

    @property
    def means(self) -> Means:
        return Means(MeasurementCache(self.folder), self._make, nothing_missing, self.clock)

    def _make(self, name: str, config: EmbeddingConfig) -> Imitation:
        backend = Imitation(config, name, self.clock, self.faults.get(name))
        if name in self.memory_bytes:
            backend.memory_bytes = self.memory_bytes[name]  # type: ignore[attr-defined]
        return backend

    def open(self, hardware: Hardware, config: EngineConfig = AUTO) -> tuple[str, str]:
        """Who serves, and why."""
        engine = open_embedding(config, hardware, self.means)
        engine.admit(EmbeddingWork(1, self._rows()))
        (event,) = engine.step()
        assert isinstance(event, Embedded)
        return engine.info.backend, "\n".join(engine.info.reasons)

    def _rows(self) -> list[np.ndarray]:
        return standard_batch(read_config(small_model("bge")).encoder.vocab_size, 32)[:3]

    def measurements(self) -> int:
        return len(list(self.folder.glob("*.json")))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "measurements")


def test_on_an_m4_the_neural_engine_serves_once_it_beat_the_gpu_and_the_figures_are_kept(bench: Bench) -> None:
    backend, reasons = bench.open(machine("m4"))
    assert backend == "coreml"
    assert "a batch of 32 texts: coreml 10.0 ms, mlx 20.0 ms" in reasons
    assert "coreml: faster than mlx here, and so it serves" in reasons
    assert bench.measurements() == 1
    bench.clock = Clock(coreml=9.0, mlx=0.001)  # and is not asked again
    backend, reasons = bench.open(machine("m4"))
    assert backend == "coreml"
    assert "coreml 10.0 ms, mlx 20.0 ms: coreml is faster than mlx" in reasons


def test_on_an_m5_whose_gpu_wins_the_gpu_serves_and_goes_first_from_then_on(bench: Bench) -> None:
    bench.clock = Clock(coreml=0.020, mlx=0.005)
    assert bench.open(machine("m5"))[0] == "mlx"
    backend, reasons = bench.open(machine("m5"))
    assert backend == "mlx"
    assert "coreml is slower than mlx" in reasons
    assert "coreml: golden check" not in reasons  # it was not even opened


@pytest.mark.parametrize(
    ("seconds", "first", "order"),
    [
        ({"coreml": 0.01, "coreai": 0.005, "mlx": 0.02}, "coreai", ("coreai", "coreml", "mlx", "cpu", "numpy")),
        ({"coreml": 0.01, "coreai": 0.03, "mlx": 0.02}, "coreml", ("coreml", "mlx", "coreai", "cpu", "numpy")),
        ({"coreml": 0.04, "coreai": 0.03, "mlx": 0.02}, "mlx", ("mlx", "coreai", "coreml", "cpu", "numpy")),
    ],
)
def test_on_macos_27_core_ai_core_ml_and_the_gpu_are_timed_and_the_fastest_serves(
    seconds: dict[str, float], first: str, order: tuple[str, ...], bench: Bench
) -> None:
    bench.clock = Clock(**seconds)
    backend, reasons = bench.open(machine("m6"))
    assert backend == first
    assert "coreml" in reasons
    assert bench.open(machine("m6"))[0] == first
    measured = bench.means.cache.latest(machine("m6"), [MODEL, "bge"])
    assert measured is not None
    chosen = get_compute_dispatcher(machine("m6"), absence=nothing_missing, measured=measured)
    assert chosen.embedding_backend.candidates == order


def test_on_an_m1_the_gpu_serves_until_somebody_has_measured(bench: Bench) -> None:
    assert bench.open(machine("m1"))[0] == "mlx"
    assert bench.measurements() == 0
    made = measure_embedding(MODEL, machine("m1"), means=bench.means)
    assert dict(made.seconds) == pytest.approx({"coreml": 0.010, "mlx": 0.020})
    backend, reasons = bench.open(machine("m1"))
    assert backend == "coreml"
    assert "coreml is faster than mlx" in reasons


@pytest.mark.parametrize("name", ["vm", "intel", "rosetta", "linux"])
def test_where_there_is_no_neural_engine_there_is_nothing_to_measure(bench: Bench, name: str) -> None:
    with pytest.raises(BackendUnavailableError, match="there is no Neural Engine to measure: "):
        measure_embedding(MODEL, machine(name), means=bench.means)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (BackendUnavailableError("conversion: no such operation"), "coreml: conversion: no such operation"),
        (BackendUnavailableError("71 % of the cost placed there"), "coreml: 71 % of the cost placed there"),
        (RuntimeError("Error compiling model"), "coreml: RuntimeError: Error compiling model"),
        ("wrong", "coreml: coreml on ane disagrees with the reference"),
    ],
)
def test_whatever_says_no_to_core_ml_the_gpu_is_next(bench: Bench, fault: Exception | str, reason: str) -> None:
    bench.faults["coreml"] = fault
    backend, reasons = bench.open(machine("m4"))
    assert backend == "mlx"
    assert reason in reasons
    assert bench.measurements() == 0


def test_down_to_numpy_and_no_further(bench: Bench) -> None:
    no = BackendUnavailableError("not here")
    bench.faults = {"coreml": no, "mlx": no, "cpu": no}
    assert bench.open(machine("m4"))[0] == "numpy"
    bench.faults["numpy"] = no
    with pytest.raises(BackendUnavailableError, match=r"nothing here can serve embedding: .*numpy: not here"):
        bench.open(machine("m4"))


def test_core_ml_is_measured_against_the_best_that_can_serve(bench: Bench) -> None:
    bench.faults["mlx"] = BackendUnavailableError("no Metal")
    backend, reasons = bench.open(machine("m4"))
    assert backend == "coreml"
    assert "coreml 10.0 ms, cpu 500.0 ms" in reasons


def test_without_an_alternative_core_ml_serves_unmeasured_and_says_so(bench: Bench) -> None:
    no = BackendUnavailableError("not here")
    bench.faults = {"mlx": no, "cpu": no, "numpy": no}
    backend, reasons = bench.open(machine("m4"))
    assert backend == "coreml"
    assert "nothing to measure it against" in reasons


def test_a_device_that_fails_its_timed_probe_does_not_serve(bench: Bench) -> None:
    bench.faults["coreml"] = "dies when timed"
    backend, reasons = bench.open(machine("m4"))
    assert backend == "mlx"
    assert "coreml: the timed probe against mlx failed: RuntimeError: the device went away" in reasons


def test_a_measurement_that_cannot_be_kept_is_used_all_the_same(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "measurements").write_text("a file where the folder should be")
    backend, reasons = bench.open(machine("m4"))
    assert backend == "coreml"
    assert "the measurement could not be kept" in reasons


def test_another_system_build_is_measured_anew(bench: Bench) -> None:
    bench.open(machine("m4"))
    bench.clock = Clock(coreml=0.9, mlx=0.1)
    assert bench.open(dataclasses.replace(machine("m4"), build="24E1"))[0] == "mlx"
    assert bench.open(machine("m4"))[0] == "coreml"
    assert bench.measurements() == 2


def test_a_backend_asked_for_by_name_is_not_measured(bench: Bench) -> None:
    backend, reasons = bench.open(machine("m1"), dataclasses.replace(AUTO, backend="coreml"))
    assert backend == "coreml"
    assert reasons.startswith("coreml: asked for by name")
    assert bench.measurements() == 0


def test_a_model_beyond_three_quarters_of_the_memory_goes_to_the_next_backend(bench: Bench) -> None:
    bench.memory_bytes = {"coreml": 25 * 2**30, "mlx": 24 * 2**30}
    backend, reasons = bench.open(machine("m4"))
    assert backend == "mlx"
    assert "coreml: the model needs 25.0 GiB, and 75% of this machine's memory are 24.0 GiB" in reasons


def test_weights_alone_may_be_beyond_the_memory() -> None:
    tiny = dataclasses.replace(machine("linux"), memory_bytes=1000)
    for kind in ("embedding", "generation"):
        with pytest.raises(BackendUnavailableError, match="75% of this machine's memory"):
            open_engine(EngineConfig(kind, MODEL, hardware=tiny))


DIED = Excluded("coreml", "the engine died twice while it was loading")


@pytest.mark.parametrize("name", ["m1", "m4", "m5"])
def test_a_backend_that_killed_its_process_is_passed_over_and_the_next_one_serves(bench: Bench, name: str) -> None:
    tried: list[str] = []
    config = dataclasses.replace(AUTO, excluded=(DIED,))
    engine = open_embedding(config, machine(name), bench.means, on_attempt=tried.append)
    assert engine.info.backend == "mlx"
    assert "coreml: the engine died twice while it was loading" in engine.info.reasons
    assert tried == ["mlx", ""]
    assert bench.measurements() == 0


def test_what_was_measured_before_does_not_bring_an_excluded_backend_back(bench: Bench) -> None:
    bench.open(machine("m4"))
    backend, reasons = bench.open(machine("m4"), dataclasses.replace(AUTO, excluded=(DIED,)))
    assert backend == "mlx"
    assert reasons.count("coreml: the engine died twice") == 1


def test_whoever_watches_hears_which_backend_is_being_opened_and_that_it_is_over(bench: Bench) -> None:
    tried: list[str] = []
    bench.faults["mlx"] = RuntimeError("no Metal")
    opened = open_embedding(AUTO, machine("m4"), bench.means, on_attempt=tried.append)
    # Core ML is opened, then its rivals until one serves, and then it has yet to stand the comparison.
    assert opened.info.backend == "coreml"
    assert tried == ["coreml", "", "mlx", "", "cpu", "", "coreml", ""]


def test_where_every_backend_is_excluded_the_error_says_why(bench: Bench) -> None:
    every = tuple(Excluded(name, "it died") for name in ("coreml", "mlx", "cpu", "numpy"))
    with pytest.raises(BackendUnavailableError, match=r"nothing here can serve embedding: .*numpy: it died"):
        bench.open(machine("m4"), dataclasses.replace(AUTO, excluded=every))
    config = EngineConfig("generation", MODEL, hardware=machine("m4"), excluded=(Excluded("mlx", "it died"),))
    with pytest.raises(BackendUnavailableError, match=r"nothing here can serve generation: .*mlx: "):
        open_engine(config)


@pytest.mark.parametrize(("kind", "name"), [("embedding", "coreml"), ("embedding", "simulated"), ("generation", "mlx")])
def test_a_backend_asked_for_by_name_that_is_excluded_is_an_error_that_says_why(kind: str, name: str) -> None:
    config = EngineConfig(
        kind, MODEL, backend=name, hardware=machine("m4"), excluded=(Excluded(name, "it died twice while loading"),)
    )
    with pytest.raises(BackendUnavailableError, match=f"{name}: it died twice while loading; ask for another"):
        open_engine(config)


def test_a_simulated_engine_is_attempted_too() -> None:
    tried: list[str] = []
    open_engine(EngineConfig("embedding", backend="simulated"), tried.append)
    assert tried == ["simulated", ""]


def test_files_that_are_bad_for_one_backend_are_bad_for_all(bench: Bench) -> None:
    bench.faults["coreml"] = ModelError("no weights")
    with pytest.raises(ModelError, match="no weights"):
        bench.open(machine("m4"))


@pytest.mark.parametrize(
    ("name", "device", "neural_engine"),
    [
        ("m4", "simulated ane", True),
        ("m1", "simulated gpu", False),
        ("vm", "simulated gpu", False),
        ("linux", "simulated cpu", False),
    ],
)
def test_the_simulated_backend_imitates_the_device_of_the_machine_it_is_told(
    name: str, device: str, neural_engine: bool
) -> None:
    info = open_engine(EngineConfig("embedding", backend="simulated", hardware=machine(name))).info
    assert (info.backend, info.device, info.neural_engine) == ("simulated", device, neural_engine)
    assert open_engine(EngineConfig("embedding", backend="simulated")).info.device == "simulated"
