"""What `impetus-worker verify` says: off a Mac, and on one that is played by numpy and a clock."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.coreml.emulated import EmulatedDevice
from impetus_backends.embedding.devices.coreml.form import COREML
from impetus_backends.embedding.devices.packages.cache import PackageCache
from impetus_backends.embedding.devices.packages.device import Placement
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.generation.models.prefill import Shape, prefill_seconds
from impetus_backends.generation.models.profiles import M5, STANDARD
from impetus_backends.machine.hardware import detect
from impetus_backends.machine.measurements import standard_batch
from impetus_backends.verified import figures
from impetus_backends.verified.check import Check, Verdict
from impetus_backends.verified.claims import CLAIMS
from impetus_backends.verified.verifier import Verifier
from impetus_worker.cli.main import main

from ..conftest import small_model
from .machines import machine

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.generation.models.profiles import Profile
    from impetus_backends.machine.hardware import Hardware

MODEL = str(small_model("bge"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


class Placed(EmulatedDevice):
    """Says where it would run, as a Mac does."""

    share = 0.97

    def placement(self, package: Path, compiled: Path, function: str) -> Placement | None:
        return Placement(self.share, 0.0, 1 - self.share)


class Misplaced(Placed):
    share = 0.42
    label = "misplaced"


def verified(cache: Path, device: type[EmulatedDevice], tick_s: float) -> dict[str, Check]:
    """The checks of a Mac (an Intel one, so that no Apple GPU is looked for) whose clock goes by ticks."""
    mac = replace(detect(), system="Darwin", machine="x86_64")
    ticks = count()
    verifier = Verifier(
        mac,
        MODEL,
        device=device,
        others=("numpy", "no-such-backend"),
        cache=PackageCache(COREML, cache / device.__name__),
        clock=lambda: next(ticks) * tick_s,
    )
    return {check.name: check for check in verifier.checks()}


def lines(checks: dict[str, Check], name: str) -> set[Verdict]:
    return {check.verdict for check in checks.values() if check.name.startswith(name)}


def test_a_mac_that_meets_every_target_passes_every_line(cache: Path) -> None:
    checks = verified(cache, Placed, 0.001)
    for name in ("machine", "convert", "placement", "accuracy", "latency"):
        assert lines(checks, name) == {Verdict.PASS}, name
    assert sum(name.startswith("latency") for name in checks) > 1
    assert "no-such-backend left out" in checks["Neural Engine against GPU and CPU"].detail
    for key in ("text-neural-engine", "batch-neural-engine", "loss-int8", "memory"):
        assert checks[CLAIMS[key].name].verdict is Verdict.PASS, key
    assert checks[CLAIMS["text-gpu"].name].detail == "MLX does not run here"
    assert checks[CLAIMS["text-pytorch"].name].verdict is Verdict.NOT_APPLICABLE
    assert {claim.name for claim in CLAIMS.values()} <= checks.keys()


def test_a_slow_mac_fails_its_latency_and_nothing_else(cache: Path) -> None:
    checks = verified(cache, Placed, 0.02)
    assert lines(checks, "latency") == {Verdict.FAIL}
    assert lines(checks, "accuracy") == {Verdict.PASS}


def test_a_model_placed_elsewhere_fails_with_its_share_bucket_by_bucket(cache: Path) -> None:
    checks = verified(cache, Misplaced, 0.001)
    assert lines(checks, "placement") == {Verdict.FAIL}
    assert lines(checks, "convert") == {Verdict.FAIL}
    assert any("Neural Engine 42%" in check.detail for check in checks.values())
    assert not lines(checks, "latency")
    assert checks[CLAIMS["text-neural-engine"].name].verdict is Verdict.FAIL
    assert {claim.name for claim in CLAIMS.values()} <= checks.keys()


def prefill_check(hardware: Hardware, seconds: dict[str, float] | Exception) -> Check:
    """What is said of the M5 loader on a machine on which each loader takes so long."""

    def take(profile: Profile) -> float:
        if isinstance(seconds, Exception):
            raise seconds
        return seconds[profile.name]

    return Verifier(hardware, prefill=take)._prefill()


@pytest.mark.parametrize(("m5_s", "verdict", "gain"), [(0.25, Verdict.PASS, "4.0x"), (0.9, Verdict.FAIL, "1.1x")])
def test_on_an_m5_its_loader_must_read_a_prompt_four_times_as_fast_as_the_standard_one(
    m5_s: float, verdict: Verdict, gain: str
) -> None:
    check = prefill_check(machine("m5"), {"standard": 1.0, "m5": m5_s})
    assert check.verdict is verdict
    assert check.detail == (
        f"2048 tokens: standard (4bit, 512 a step) 1.00 s, m5 (mixed_4_6, 2048 a step) {m5_s:.2f} s, {gain} "
        "(target: 4x, which nobody has met yet); a model of random weights; "
        f"{100 * 2 * 2048 * Shape().weights / (m5_s * 17.5e12):.1f}% of the chip's roof"
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("m1", "no neural accelerators"),
        ("m4-max", "no neural accelerators"),
        ("vm", "no neural accelerators"),
        ("intel", "no Apple GPU"),
        ("rosetta", "no Apple GPU"),
        ("linux", "no Apple GPU"),
    ],
)
def test_no_other_machine_is_asked_how_fast_the_m5_loader_is(name: str, reason: str) -> None:
    check = prefill_check(machine(name), AssertionError("not to be timed"))
    assert check.verdict is Verdict.NOT_APPLICABLE
    assert reason in check.detail


def test_an_m5_on_which_mlx_does_not_run_says_so() -> None:
    check = prefill_check(machine("m5"), RuntimeError("no Metal device"))
    assert (check.verdict, check.detail) == (Verdict.NOT_APPLICABLE, "MLX does not run: no Metal device")


@pytest.mark.parametrize("profile", [STANDARD, M5])
def test_of_the_rounds_in_which_a_loader_reads_a_prompt_the_first_does_not_count(profile: Profile) -> None:
    pytest.importorskip("mlx_lm")
    small = Shape(hidden=64, layers=1, heads=2, key_value_heads=1, mlp=128, vocabulary=128)
    readings = iter([0.0, 100.0, 0.0, 3.0, 0.0, 1.0, 0.0, 2.0])
    assert prefill_seconds(profile, clock=lambda: next(readings), prompt_tokens=600, shape=small) == 2.0
    assert not list(readings)


def test_off_a_mac_no_line_claims_what_only_a_mac_can_tell(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPETUS_CACHE_DIR", str(cache))
    monkeypatch.setattr("platform.system", lambda: "Linux")
    result = CliRunner().invoke(main, ["verify", "--embedding-model", MODEL, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert {verdict for name, verdict in verdicts.items() if name.startswith("accuracy")} == {"pass"}
    here = {"loss-int8": "pass", "loss-w8a8": "pass", "memory": "pass"}
    assert {key: verdicts[claim.name] for key, claim in CLAIMS.items()} == {
        key: here.get(key, "not applicable") for key in CLAIMS
    }
    assert set(verdicts.values()) == {"pass", "not applicable"}
    for name in ("placement", "latency", "Neural Engine", "GPU", "prefill", "measurement", "idle sleep"):
        told = {verdict for each, verdict in verdicts.items() if each.startswith(name)}
        assert told == {"not applicable"}, name
    assert all(check["detail"] for check in report["checks"])
    assert report["machine"]["system"] == "Linux"
    assert "coremltools" in report["versions"]


def test_where_core_ml_is_not_installed_linux_says_so_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impetus_backends.verified.verifier.not_installed", lambda backend: f"no {backend} here")
    checks = {check.name: check for check in Verifier(machine("linux"), MODEL).checks()}
    assert Verdict.FAIL not in {check.verdict for check in checks.values()}
    assert checks["convert, compile, load"] == Check("convert, compile, load", Verdict.NOT_APPLICABLE, "no coreml here")
    assert checks[CLAIMS["loss-int8"].name].verdict is Verdict.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("name", "seconds", "verdict"),
    [
        ("m1", {"coreml": 0.02, "mlx": 0.01}, Verdict.PASS),
        ("m3-max", {"coreml": 0.01, "mlx": 0.02}, Verdict.FAIL),
        ("m4", {"coreml": 0.01, "mlx": 0.02}, Verdict.PASS),
        ("m5-max", {"coreml": 0.02, "mlx": 0.01}, Verdict.FAIL),
        ("m4", {"mlx": 0.01}, Verdict.NOT_APPLICABLE),
        ("linux", {}, Verdict.NOT_APPLICABLE),
        ("rosetta", {"coreml": 0.01, "mlx": 0.02}, Verdict.NOT_APPLICABLE),
    ],
)
def test_the_rule_by_the_chips_number_holds_where_it_takes_the_faster_backend(
    name: str, seconds: dict[str, float], verdict: Verdict
) -> None:
    assert figures.of_rule(machine(name), seconds).verdict is verdict


def test_memory_is_what_this_process_took_of_what_a_model_may_need() -> None:
    small = replace(machine("m1"), memory_bytes=2**20)
    assert figures.of_memory(small).verdict is Verdict.FAIL
    assert "(75%)" in figures.of_memory(machine("m1")).detail
    assert figures.of_memory(replace(small, memory_bytes=0)).verdict is Verdict.NOT_APPLICABLE


def test_a_device_that_fails_while_it_is_timed_fails_its_line_and_no_more() -> None:
    class Broken:
        name = "coreml"

        def embed(self, rows: list[object]) -> None:
            raise RuntimeError("the engine is gone")

    config = read_config(small_model("bge"))
    lines = figures.of_texts(machine("m5"), config, {"coreml": Broken()}, None, count().__next__)  # type: ignore[dict-item]
    told = {check.name: check for check in lines}
    assert told[CLAIMS["text-neural-engine"].name].detail == "coreml could not run it: the engine is gone"
    assert told[CLAIMS["text-neural-engine"].name].verdict is Verdict.FAIL
    assert told[CLAIMS["text-gpu"].name].verdict is Verdict.NOT_APPLICABLE


class Meter:
    """Uses two joules from one look to the next, and breaks after so many looks."""

    source = "rapl"

    def __init__(self, looks: int) -> None:
        self._looks, self._used = looks, 0.0

    def joules(self) -> float:
        self._looks, self._used = self._looks - 1, self._used + 2.0
        if self._looks < 0:
            raise OSError("no counter any more")
        return self._used


@pytest.mark.parametrize(
    ("meter", "verdict", "says"),
    [
        (lambda: None, Verdict.NOT_APPLICABLE, "nothing here measures it"),
        (
            lambda: Meter(2),
            Verdict.PASS,
            "62.5 J for 1,000 texts and 1.73 J for 1,000 tokens, of the whole chip by rapl",
        ),
        (lambda: Meter(1), Verdict.NOT_APPLICABLE, "rapl told no more: no counter any more"),
    ],
)
def test_what_the_chip_uses_is_measured_where_something_can(meter: Any, verdict: Verdict, says: str) -> None:
    config, ticks = read_config(small_model("bge")), count()
    backend = make_backend("numpy", config)
    backend.load()
    rows = standard_batch(config.encoder.vocab_size, config.text.max_tokens)
    check = figures.of_energy(backend, rows, meter(), lambda: float(next(ticks)))
    assert check.verdict is verdict
    assert says in check.detail
