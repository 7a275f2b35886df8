"""The policy for every machine: what is tried, in which order, and why."""

from __future__ import annotations

import dataclasses

import pytest

from impetus_backends.dispatcher import get_compute_dispatcher
from impetus_backends.machine.measurements import Measurement, conditions
from impetus_backends.machine.policy import not_installable
from tests.backends.machine.machines import NAMES, machine, nothing_missing


@pytest.mark.parametrize(
    ("name", "embedding", "generation", "profile"),
    [
        ("m1", ("mlx", "coreml", "cpu", "numpy"), ("mlx",), "standard"),
        ("m1-ultra", ("mlx", "coreml", "cpu", "numpy"), ("mlx",), "standard"),
        ("m2-pro", ("mlx", "coreml", "cpu", "numpy"), ("mlx",), "standard"),
        ("m3-max", ("mlx", "coreml", "cpu", "numpy"), ("mlx",), "standard"),
        ("m4", ("coreml", "mlx", "cpu", "numpy"), ("mlx",), "standard"),
        ("m4-max", ("coreml", "mlx", "cpu", "numpy"), ("mlx",), "standard"),
        ("m5", ("coreml", "mlx", "cpu", "numpy"), ("mlx",), "m5"),
        ("m5-pro", ("coreml", "mlx", "cpu", "numpy"), ("mlx",), "m5"),
        ("m5-max", ("coreml", "coreai", "mlx", "cpu", "numpy"), ("mlx",), "m5"),
        ("m5-ultra", ("coreml", "coreai", "mlx", "cpu", "numpy"), ("mlx",), "m5"),
        ("m6", ("coreml", "coreai", "mlx", "cpu", "numpy"), ("mlx",), "m5"),
        ("intel", ("cpu", "numpy"), (), None),
        ("vm", ("mlx", "cpu", "numpy"), ("mlx",), "standard"),
        ("rosetta", ("cpu", "numpy"), (), None),
        ("linux", ("cpu", "numpy"), ("mlx",), "standard"),
    ],
)
def test_each_machine_has_its_order(
    name: str, embedding: tuple[str, ...], generation: tuple[str, ...], profile: str | None
) -> None:
    hardware = machine(name)
    chosen = get_compute_dispatcher(hardware, absence=not_installable(hardware))
    assert chosen.embedding_backend.candidates == embedding
    assert chosen.lm_backend.candidates == generation
    assert chosen.lm_backend.profile == profile
    assert chosen.memory_limit_bytes == hardware.memory_bytes * 3 // 4


@pytest.mark.parametrize("name", NAMES)
def test_every_reason_is_a_sentence_about_this_machine(name: str) -> None:
    hardware = machine(name)
    chosen = get_compute_dispatcher(hardware, absence=not_installable(hardware))
    for choice in (chosen.embedding_backend, chosen.lm_backend):
        assert choice.reasons
        for reason in choice.reasons:
            assert len(reason.split()) >= 4
            assert "None" not in reason
            assert "  " not in reason


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("m1", "M1 to M3"),
        ("m4", "M4 or later"),
        ("m5", "from the M5 on"),
        ("intel", "Intel processor"),
        ("vm", "a virtual machine"),
        ("rosetta", "install a native one"),
        ("linux", "not Apple silicon"),
    ],
)
def test_the_reason_names_what_decided(name: str, word: str) -> None:
    assert word in " ".join(get_compute_dispatcher(machine(name)).embedding_backend.reasons)


@pytest.mark.parametrize(("chip", "first"), [(9, "coreml"), (None, "mlx")])
def test_chips_of_the_future_get_the_neural_engine_and_unknown_ones_the_gpu(chip: int | None, first: str) -> None:
    hardware = dataclasses.replace(machine("m4"), generation=chip, tier=None, chip="Apple Whatever")
    assert get_compute_dispatcher(hardware, absence=nothing_missing).embedding_backend.first == first


def test_the_neural_engine_is_left_out_where_core_ml_lists_none() -> None:
    hardware = dataclasses.replace(machine("m4"), neural_engine=False)
    assert get_compute_dispatcher(hardware, absence=nothing_missing).embedding_backend.candidates[0] == "mlx"
    unknown = dataclasses.replace(machine("m4"), neural_engine=None)
    assert get_compute_dispatcher(unknown, absence=nothing_missing).embedding_backend.candidates[0] == "coreml"


def test_mlx_is_not_to_be_had_before_macos_14() -> None:
    hardware = dataclasses.replace(machine("m4"), macos="13.6")
    chosen = get_compute_dispatcher(hardware, absence=not_installable(hardware))
    assert chosen.embedding_backend.candidates == ("coreml", "cpu", "numpy")
    assert "mlx: MLX needs macOS 14, and this machine runs 13.6" in chosen.embedding_backend.reasons


def test_an_m5_without_the_right_system_or_wheel_gets_the_standard_loader_and_hears_why() -> None:
    hardware = dataclasses.replace(machine("m5"), neural_accelerators_likely=False)
    choice = get_compute_dispatcher(hardware, absence=nothing_missing).lm_backend
    assert choice.profile == "standard"
    assert "macOS 26.2" in choice.reasons[-1]


@pytest.mark.parametrize(
    ("name", "coreml_s", "mlx_s", "order"),
    [
        ("m1", 0.010, 0.020, ("coreml", "mlx", "cpu", "numpy")),
        ("m1", 0.020, 0.010, ("mlx", "coreml", "cpu", "numpy")),
        ("m4", 0.020, 0.010, ("mlx", "coreml", "cpu", "numpy")),
        ("m4", 0.010, 0.020, ("coreml", "mlx", "cpu", "numpy")),
        ("vm", 0.010, 0.020, ("mlx", "cpu", "numpy")),
    ],
)
def test_a_measurement_made_on_the_machine_overrules_the_default_in_both_directions(
    name: str, coreml_s: float, mlx_s: float, order: tuple[str, ...]
) -> None:
    hardware = machine(name)
    measured = Measurement(
        conditions(hardware, "f"), "m", (("coreml", coreml_s), ("mlx", mlx_s)), "2026-11-23T10:00:00+00:00"
    )
    choice = get_compute_dispatcher(hardware, absence=nothing_missing, measured=measured).embedding_backend
    assert choice.candidates == order
    if name != "vm":
        figures = f"measured here on 2026-11-23, a batch of 32 texts: coreml {coreml_s * 1e3:.1f} ms, "
        assert choice.reasons[-1].startswith(figures)
