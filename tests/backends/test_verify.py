"""What `impetus-worker verify` says: off a Mac, and on one that is played by numpy and a clock."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from impetus_backends.embedding.coreml.cache import PackageCache
from impetus_backends.embedding.coreml.device import Placement
from impetus_backends.embedding.coreml.emulated import EmulatedDevice
from impetus_backends.hardware import detect
from impetus_backends.verify import Check, Verdict, Verifier
from impetus_worker.cli import main

from .conftest import small_model

if TYPE_CHECKING:
    from pathlib import Path

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
        cache=PackageCache(cache / device.__name__),
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


def test_off_a_mac_no_line_claims_what_only_a_mac_can_tell(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPETUS_CACHE_DIR", str(cache))
    monkeypatch.setattr("platform.system", lambda: "Linux")
    result = CliRunner().invoke(main, ["verify", "--embedding-model", MODEL, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert {verdict for name, verdict in verdicts.items() if name.startswith("accuracy")} == {"pass"}
    for name in ("placement", "latency", "Neural Engine", "GPU", "prefill", "measurement"):
        told = {verdict for each, verdict in verdicts.items() if each.startswith(name)}
        assert told == {"not applicable"}, name
    assert all(check["detail"] for check in report["checks"])
    assert report["machine"]["system"] == "Linux"
    assert "coremltools" in report["versions"]
