"""Machines are told apart by what their probes answer, and no answer, however bad, is fatal."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impetus_backends.machine import probes
from impetus_backends.machine.hardware import detect, identify, read_machine, record
from impetus_backends.machine.probes import ProbeError, ask_child, cheap_probes, recorded
from tests.backends.machine.machines import FOLDER, NAMES, machine, machine_file

if TYPE_CHECKING:
    from pathlib import Path

GIB = 2**30


def mac(**changes: dict[str, Any]) -> dict[str, Any]:
    """An M4's answers, with parts of them changed."""
    answers: dict[str, Any] = json.loads(machine_file("m4").read_text())["answers"]
    for probe, values in changes.items():
        answers[probe] = {**answers[probe], **values}
    return answers


def answering(answers: dict[str, Any]) -> dict[str, probes.Probe]:
    return {name: partial(answers.get, name) for name in answers}


@pytest.mark.parametrize(
    ("name", "generation", "tier", "cores", "memory_gib", "engine_cores"),
    [
        ("m1", 1, "base", (8, 4, 4), 16, 16),
        ("m1-ultra", 1, "Ultra", (20, 16, 4), 64, 32),
        ("m2-pro", 2, "Pro", (12, 8, 4), 32, 16),
        ("m3-max", 3, "Max", (16, 12, 4), 128, 16),
        ("m4", 4, "base", (10, 4, 6), 32, 16),
        ("m4-max", 4, "Max", (16, 12, 4), 128, 16),
        ("m5", 5, "base", (10, 4, 6), 24, 16),
        ("m5-pro", 5, "Pro", (18, 6, 12), 48, 16),
        ("m5-max", 5, "Max", (18, 6, 12), 128, 16),
        ("m5-ultra", 5, "Ultra", (36, 12, 24), 256, 32),
        ("m6", 6, "base", (10, 4, 6), 32, 16),
    ],
)
def test_an_apple_chip_is_known_by_its_name(
    name: str, generation: int, tier: str, cores: tuple[int, int, int], memory_gib: int, engine_cores: int
) -> None:
    found = machine(name)
    assert (found.generation, found.tier) == (generation, tier)
    assert (found.cores, found.performance_cores, found.efficiency_cores) == cores
    assert found.memory_bytes == memory_gib * GIB
    assert found.apple_silicon
    assert not found.virtual
    assert found.neural_engine
    assert found.neural_engine_cores == engine_cores
    assert found.problems == ()


def test_machines_without_a_neural_engine_of_use_are_told_apart() -> None:
    intel, vm, rosetta, linux = (machine(name) for name in ("intel", "vm", "rosetta", "linux"))
    assert (intel.apple_silicon, intel.rosetta, intel.generation) == (False, False, None)
    assert (vm.apple_silicon, vm.virtual, vm.generation, vm.tier) == (True, True, 1, "base")
    assert (rosetta.apple_silicon, rosetta.rosetta, rosetta.generation) == (False, True, 2)
    assert (linux.system, linux.chip) == ("Linux", "AMD EPYC 7763 64-Core Processor")
    assert [found.neural_engine for found in (intel, vm, rosetta, linux)] == [False] * 4
    assert [found.problems for found in (intel, vm, rosetta, linux)] == [()] * 4


def test_every_machine_file_is_read_and_says_where_it_comes_from() -> None:
    assert sorted(file.stem for file in FOLDER.glob("*.json")) == sorted(NAMES)
    for name in NAMES:
        origin = json.loads(machine_file(name).read_text())["origin"]
        assert "unverified" in origin or origin == "recorded by impetus-worker doctor"


@pytest.mark.parametrize(
    ("chip", "generation", "tier"),
    [
        ("Apple M9 Ultra Max", 9, None),
        ("Apple M12", 12, "base"),
        ("Apple M6 Extreme", 6, None),
        ("Apple A18 Pro", None, None),
        ("Apple Mystery", None, None),
        ("Apple M", None, None),
    ],
)
def test_a_chip_of_the_future_keeps_what_is_known_of_its_name(
    chip: str, generation: int | None, tier: str | None
) -> None:
    found = detect(answering(mac(sysctl={"machdep.cpu.brand_string": chip})))
    assert (found.chip, found.generation, found.tier) == (chip, generation, tier)
    assert found.apple_silicon


def test_rosetta_is_known_by_the_chip_where_sysctl_does_not_say() -> None:
    for chip in ("Apple M2", "VirtualApple @ 2.50GHz"):
        answers = mac(
            platform={"machine": "x86_64"}, sysctl={"machdep.cpu.brand_string": chip, "sysctl.proc_translated": ""}
        )
        assert detect(answering(answers)).rosetta


def test_a_virtual_mac_is_known_by_its_model_where_sysctl_does_not_say() -> None:
    assert detect(answering(mac(sysctl={"hw.model": "VirtualMac2,1", "kern.hv_vmm_present": ""}))).virtual


@pytest.mark.parametrize(
    ("macos", "architecture", "wheel", "likely"),
    [
        ("26.2", "applegpu_g17g", "macosx_26_0_arm64", True),
        ("27.0", "applegpu_g18s", "macosx_26_0_arm64", True),
        ("26.1", "applegpu_g17g", "macosx_26_0_arm64", False),
        ("26.2", "applegpu_g16s", "macosx_26_0_arm64", False),
        ("26.2", "applegpu_g17g", "macosx_15_0_arm64", False),
        ("26.2", "applegpu_g17g", "", False),
        ("26.2", "applegpu_g17p", "macosx_26_0_arm64", False),  # the GPU of a phone
        ("26.2", "applegpu_g18p", "macosx_26_0_arm64", True),
        ("", "", "", False),
    ],
)
def test_neural_accelerators_are_likely_where_system_gpu_and_wheel_agree(
    macos: str, architecture: str, wheel: str, likely: bool
) -> None:
    answers = mac(
        sysctl={"kern.osproductversion": macos}, mlx={"device": {"architecture": architecture}, "wheel": wheel}
    )
    assert detect(answering(answers)).neural_accelerators_likely is likely


def test_a_probe_that_hangs_is_given_up_and_reported() -> None:
    def hang() -> str:
        return ask_child([sys.executable, "-c", "import time; time.sleep(600)"], timeout_s=0.2)

    found = detect({**answering(mac()), "coreml": hang})
    assert found.problems == ("coreml: no answer within 0.2 s",)
    assert found.neural_engine is None
    assert found.generation == 4


def test_a_probe_whose_child_leaves_a_child_behind_is_given_up_all_the_same() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    with pytest.raises(ProbeError, match=r"no answer within 0\.5 s"):
        ask_child([sys.executable, "-c", program], timeout_s=0.5)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os; os.kill(os.getpid(), 11)", "ended with status -11: it said nothing"),
        ("raise RuntimeError('no device')", "ended with status 1: RuntimeError: no device"),
    ],
)
def test_a_probe_whose_child_dies_says_how(program: str, reason: str) -> None:
    with pytest.raises(ProbeError) as met:
        ask_child([sys.executable, "-c", program], timeout_s=30)
    assert str(met.value) == reason


def test_a_program_that_does_not_exist_is_a_probe_without_an_answer() -> None:
    with pytest.raises(ProbeError, match="no-such-program cannot be run: No such file"):
        ask_child(["/no-such-program"], timeout_s=1)


def test_a_child_that_answers_and_ends_badly_has_answered() -> None:
    # As sysctl does that is asked for a name which this machine does not know.
    assert ask_child([sys.executable, "-c", "print('hw.model: Mac'); raise SystemExit(1)"], 30) == "hw.model: Mac\n"


def test_a_machine_that_answers_nothing_is_described_all_the_same() -> None:
    def fail() -> None:
        raise OSError("broken")

    found = detect(dict.fromkeys(("platform", "sysctl", "linux", "mlx", "coreml"), fail))
    assert (found.system, found.cores) == ("unknown", 1)
    assert found.problems == ("platform: broken",)
    no_probes = detect({})
    assert no_probes.problems == ("platform: no answer",)


def test_a_mac_without_sysctl_is_a_mac_with_a_problem() -> None:
    answers = mac()
    del answers["sysctl"]
    found = detect(answering(answers))
    assert (found.system, found.machine, found.memory_bytes) == ("Darwin", "arm64", 0)
    assert found.problems == ("sysctl: no answer",)


def test_an_absurd_answer_is_a_problem_and_counts_for_nothing() -> None:
    found = detect(answering(mac(sysctl={"hw.memsize": "lots", "hw.model": 7}, platform={"cores": -3})))
    assert (found.memory_bytes, found.model, found.cores) == (0, "", 1)
    assert set(found.problems) == {
        "platform: cores is -3, which is no count",
        "sysctl: hw.memsize is 'lots', which is no count",
        "sysctl: hw.model is 7, which is no text",
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ODD_TEXT = st.text(max_size=30) | st.sampled_from(["Apple M" + "9" * 5000, "applegpu_g" + "1" * 5000, "1.2.", "٣"])


@settings(max_examples=60)
@given(
    system=st.sampled_from(["Darwin", "Linux", "Plan 9"]),
    sysctl=st.dictionaries(st.sampled_from(probes.SYSCTL_NAMES), ODD_TEXT | JSON) | JSON,
    mlx=st.fixed_dictionaries({"device": st.fixed_dictionaries({"architecture": ODD_TEXT}), "wheel": ODD_TEXT}) | JSON,
    coreml=st.fixed_dictionaries({"devices": JSON, "neural_engine_cores": JSON}) | JSON,
)
def test_no_answer_is_fatal(system: str, sysctl: Any, mlx: Any, coreml: Any) -> None:
    about = {"system": system, "machine": "arm64", "cores": 8}
    answers = {"platform": about, "sysctl": sysctl, "mlx": mlx, "coreml": coreml, "linux": sysctl}
    found = detect(answering(answers))
    assert found.cores == 8
    assert 0 <= found.memory_bytes <= 2**50
    assert all(isinstance(problem, str) and "\n" not in problem.strip() for problem in found.problems)


def test_this_machine_is_described_without_problems() -> None:
    assert detect().problems == ()
    named = identify()
    assert named.chip
    assert named.memory_bytes > GIB


def test_what_a_machine_answers_can_be_written_and_read_on_another(tmp_path: Path) -> None:
    def fail() -> None:
        raise ProbeError("no answer within 5 s")

    file = tmp_path / "mine.json"
    file.write_text(json.dumps(record({**answering(mac()), "mlx": fail})))
    assert json.loads(file.read_text())["origin"] == "recorded by impetus-worker doctor"
    assert read_machine(file) == replace(machine("m4"), gpu_architecture="", problems=("mlx: no answer within 5 s",))


def test_a_recording_holds_nothing_that_names_its_owner() -> None:
    assert record(cheap_probes())["answers"].keys() == {"platform", "linux"} or sys.platform != "linux"
    assert not [name for name in probes.SYSCTL_NAMES if "host" in name or "uuid" in name or "serial" in name]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"answers": 3}', '{"answers": [1, 2]}', "\x00\xff"])
def test_a_file_that_describes_no_machine_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(ProbeError, match=r"bad\.json is no description of a machine .*--record"):
        recorded(file)
    with pytest.raises(ProbeError, match=r"is no description"):
        recorded(tmp_path / "missing.json")
