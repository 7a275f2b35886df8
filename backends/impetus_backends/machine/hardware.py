"""What this machine is, as far as choosing a backend needs it. Reads the probes' answers; decides nothing.

Nothing an answer says is trusted: what is missing or absurd becomes "not known" and a sentence in `problems`. On Apple
hardware the names are sysctl's. Rosetta: `sysctl.proc_translated`; a virtual machine: `kern.hv_vmm_present`; cores:
https://developer.apple.com/documentation/kernel/1387446-sysctlbyname/determining_system_capabilities. Not yet run on
a Mac.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from impetus_backends.machine.probes import all_probes, cheap_probes, recorded

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.machine.probes import Probe, Probes

_M_SERIES = re.compile(r"\AApple M(\d{1,3})\b(.*)", re.DOTALL)
_ARCHITECTURE = re.compile(r"\Aapplegpu_g(\d{1,3})([a-z]?)\Z")
_TIERS = ("Pro", "Max", "Ultra")
_ACCELERATORS_MACOS = (26, 2)
_ACCELERATORS_GPU = 17
_MAX_MEMORY_BYTES = 2**50


@dataclass(frozen=True, slots=True)
class Hardware:
    """None and the empty string mean "not known"."""

    system: str
    """`Darwin` or `Linux`."""
    machine: str
    """`arm64`, `x86_64`, `aarch64`."""
    chip: str
    cores: int
    memory_bytes: int
    """0 where it is not known."""
    generation: int | None = None
    """The number in "Apple M4"; None for every other chip."""
    tier: str | None = None
    """`base`, `Pro`, `Max` or `Ultra`; None for names that do not exist today."""
    performance_cores: int | None = None
    efficiency_cores: int | None = None
    model: str = ""
    """`Mac16,10`."""
    macos: str = ""
    """`26.2`."""
    build: str = ""
    """`25C56`: what a measurement holds for."""
    rosetta: bool = False
    """An x86 Python on Apple silicon: neither Core ML's Neural Engine nor MLX is to be had."""
    virtual: bool = False
    neural_engine: bool | None = None
    """Whether Core ML lists one. Not whether any model runs on it."""
    neural_engine_cores: int | None = None
    gpu_architecture: str = ""
    """MLX's word, `applegpu_g16s`: generation 16, of the size of a Max."""
    neural_accelerators_likely: bool = False
    """Whether MLX should use the matrix units in an M5's GPU. Likely and no more: no call of MLX's tells."""
    problems: tuple[str, ...] = ()
    """The probes that gave no sensible answer."""

    @property
    def apple_silicon(self) -> bool:
        """Whether this process runs natively on an Apple chip."""
        return self.system == "Darwin" and self.machine == "arm64" and not self.rosetta


def detect(probes: Probes | None = None) -> Hardware:
    """This machine, or the one whose answers `probes` give. Never raises: a probe that fails is in `problems`."""
    answers = _Answers(all_probes() if probes is None else probes)
    about = answers.ask("platform")
    system, machine = about.text("system") or "unknown", about.text("machine") or "unknown"
    cores = about.count("cores") or 1
    if system != "Darwin":
        linux = answers.ask("linux") if system == "Linux" else _Answer("linux", {}, answers.problems)
        return Hardware(
            system,
            machine,
            linux.text("chip") or machine,
            cores,
            linux.count("memory_bytes", _MAX_MEMORY_BYTES) or 0,
            neural_engine=False,
            problems=tuple(answers.problems),
        )
    return _mac(answers, machine, cores)


def identify() -> Hardware:
    """This machine without the slow probes: its chip and memory, nothing about MLX or Core ML."""
    return detect(cheap_probes())


def read_machine(file: Path) -> Hardware:
    """The machine that a file describes; raises `ProbeError` for a file that is no such description."""
    return detect(recorded(file))


def _mac(answers: _Answers, machine: str, cores: int) -> Hardware:
    sysctl = answers.ask("sysctl")
    chip = sysctl.text("machdep.cpu.brand_string") or machine
    # Translated programs are told an Intel machine, and an Apple chip under one of two names.
    rosetta = sysctl.text("sysctl.proc_translated") == "1" or (
        machine == "x86_64" and chip.startswith(("Apple ", "VirtualApple"))
    )
    native = machine == "arm64" and not rosetta
    model, macos = sysctl.text("hw.model"), sysctl.text("kern.osproductversion")
    mlx = answers.ask("mlx", optional=True) if native else _Answer("mlx", {}, answers.problems)
    coreml = answers.ask("coreml", optional=True) if native else _Answer("coreml", {}, answers.problems)
    architecture = mlx.inner("device").text("architecture")
    devices = coreml.value.get("devices")
    generation, tier = _generation(chip)
    return Hardware(
        "Darwin",
        machine,
        chip,
        cores,
        sysctl.count("hw.memsize", _MAX_MEMORY_BYTES) or 0,
        generation=generation,
        tier=tier,
        performance_cores=sysctl.count("hw.perflevel0.physicalcpu"),
        efficiency_cores=sysctl.count("hw.perflevel1.physicalcpu"),
        model=model,
        macos=macos,
        build=sysctl.text("kern.osversion"),
        rosetta=rosetta,
        virtual=sysctl.text("kern.hv_vmm_present") == "1" or model.startswith("VirtualMac"),
        neural_engine=_lists_neural_engine(devices) if native else False,
        neural_engine_cores=coreml.count("neural_engine_cores"),
        gpu_architecture=architecture,
        neural_accelerators_likely=_accelerators(macos, architecture, mlx.text("wheel")),
        problems=tuple(answers.problems),
    )


def _generation(chip: str) -> tuple[int | None, str | None]:
    """(4, "Max") of "Apple M4 Max". A name beyond those known keeps its number, and loses its tier."""
    found = _M_SERIES.match(chip)
    if found is None:
        return None, None
    words = found[2].replace("(Virtual)", "").split()
    if not words:
        return int(found[1]), "base"
    return int(found[1]), words[0] if len(words) == 1 and words[0] in _TIERS else None


def _lists_neural_engine(devices: object) -> bool | None:
    if not isinstance(devices, list) or not devices:
        return None
    return any("NeuralEngine" in str(device) for device in devices)


def _accelerators(macos: str, architecture: str, wheel: str) -> bool:
    """MLX's own conditions (`is_nax_available` in mlx/backend/metal/device.cpp), and a wheel built for macOS 26."""
    gpu = _ARCHITECTURE.match(architecture)
    # A phone's GPU, as in the MacBook Neo, counts a generation ahead.
    enough = gpu is not None and int(gpu[1]) >= _ACCELERATORS_GPU + (gpu[2] == "p")
    built = re.match(r"macosx_(\d{1,3})_", wheel)
    return enough and version(macos) >= _ACCELERATORS_MACOS and built is not None and int(built[1]) >= 26


def version(text: str) -> tuple[int, ...]:
    """(26, 2) of "26.2"; () of what is no version."""
    return tuple(int(part) for part in text.split(".")) if re.fullmatch(r"\d{1,6}(\.\d{1,6}){0,3}", text) else ()


@dataclass(frozen=True, slots=True)
class _Answer:
    """One probe's answer, read with suspicion."""

    probe: str
    value: dict[Any, Any]
    problems: list[str]

    def text(self, name: str) -> str:
        found = self.value.get(name, "")
        if found is not None and not isinstance(found, str):
            self.problems.append(f"{self.probe}: {name} is {found!r:.60}, which is no text")
            return ""
        return (found or "").strip()

    def count(self, name: str, most: int = 4096) -> int | None:
        """A number from 1 to `most`, written as one or as text."""
        found = self.value.get(name)
        if found is None or found == "":
            return None
        whole = re.fullmatch(r"\d{1,18}", str(found).strip()) if not isinstance(found, bool) else None
        if whole is None or not 1 <= int(whole[0]) <= most:
            self.problems.append(f"{self.probe}: {name} is {found!r:.60}, which is no count")
            return None
        return int(whole[0])

    def inner(self, name: str) -> _Answer:
        found = self.value.get(name)
        return _Answer(self.probe, found if isinstance(found, dict) else {}, self.problems)


class _Answers:
    def __init__(self, probes: Probes) -> None:
        self._probes = probes
        self.problems: list[str] = []

    def ask(self, name: str, *, optional: bool = False) -> _Answer:
        """An answer, empty if there is none. Not being asked is a problem only where it is not `optional`."""
        value: Any = None
        if name in self._probes:
            try:
                value = self._probes[name]()
            except Exception as error:  # noqa: BLE001 - whatever a probe meets, the machine is described without it
                self.problems.append(f"{name}: {error}")
                return _Answer(name, {}, self.problems)
        if not isinstance(value, dict) and not (value is None and optional):
            self.problems.append(f"{name}: {'no answer' if value is None else f'an absurd answer, {value!r:.60}'}")
        return _Answer(name, value if isinstance(value, dict) else {}, self.problems)


def record(probes: Probes) -> dict[str, Any]:
    """The raw answers of this machine as JSON data, for `recorded` on another."""
    answers: dict[str, Any] = {}
    problems: dict[str, str] = {}

    def keeping(name: str, probe: Probe) -> Probe:
        def ask() -> Any:
            try:
                answers[name] = probe()
            except Exception as error:
                problems[name] = str(error)
                raise
            return answers[name]

        return ask

    detect({name: keeping(name, probe) for name, probe in probes.items()})  # asks those that concern this machine
    return {"origin": "recorded by impetus-worker doctor", "answers": answers, "problems": problems}
