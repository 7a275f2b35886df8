"""Which backends a machine should try, in which order, and why: rules and sentences, and nothing is loaded or asked.

"The GPU by default on M1 to M3" is a policy and no fact about the hardware; a measurement made on the machine overrules
it, in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeAlias

from impetus_backends.errors import BackendUnavailableError
from impetus_backends.machine.hardware import version

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from impetus_backends.engine_config import Excluded
    from impetus_backends.machine.hardware import Hardware
    from impetus_backends.machine.measurements import Measurement

Absence: TypeAlias = "Callable[[str], str | None]"
"""Says why a backend's packages are not there; None where they are."""

NEURAL_ENGINE_GENERATION = 4
MEMORY_SHARE = 0.75
LM = "mlx-lm"
TO_BE_PROVEN = ("coreml", "coreai")
"""They serve by themselves only where a measurement on the machine finds them faster than the next."""
_CORE_AI_MACOS = (27,)
_PACKAGES = {
    "coreml": ("coremltools",),
    "coreai": ("coreai",),
    "mlx": ("mlx",),
    "cpu": ("onnxruntime", "onnx"),
    "numpy": ("numpy",),
    LM: ("mlx", "mlx_lm"),
}
_MLX_LEAST_MACOS = (14,)


@dataclass(frozen=True, slots=True)
class Choice:
    """The backends of one kind, in the order in which they are tried, and what speaks for or against each."""

    candidates: tuple[str, ...]
    reasons: tuple[str, ...]
    profile: str | None = None
    """Of generation through MLX: the loader that suits the GPU, `standard` or `m5`."""

    @property
    def first(self) -> str | None:
        return self.candidates[0] if self.candidates else None


def without_excluded(choice: Choice, excluded: Sequence[Excluded]) -> Choice:
    """The choice without the backends that are passed over, and with the reasons why."""
    out = {each.backend: each.reason for each in excluded if each.backend in choice.candidates}
    return replace(
        choice,
        candidates=tuple(name for name in choice.candidates if name not in out),
        reasons=(*choice.reasons, *(f"{name}: {reason}" for name, reason in out.items())),
    )


def not_installed(backend: str) -> str | None:
    """What this Python lacks for a backend."""
    if all(find_spec(package) is not None for package in _PACKAGES[backend]):
        return None
    return f"not installed (pip install 'impetus-batch[{'mlx' if backend == LM else backend}]')"


def not_installable(hardware: Hardware) -> Absence:
    """What another machine lacks for a backend, if it has installed whatever can be installed there."""

    def absence(backend: str) -> str | None:
        if backend in ("mlx", LM) and hardware.system == "Darwin":
            if not hardware.apple_silicon:
                return "MLX is not made for Intel Macs, nor for a Python that runs under Rosetta"
            if (macos := version(hardware.macos)) and macos < _MLX_LEAST_MACOS:
                return f"MLX needs macOS 14, and this machine runs {hardware.macos}"
        return None

    return absence


def memory_limit_bytes(hardware: Hardware) -> int | None:
    """The most that a model may need here; None where the memory is not known."""
    return int(hardware.memory_bytes * MEMORY_SHARE) or None


def check_memory(needed_bytes: int | None, folder: Path, limit_bytes: int | None) -> None:
    """Raises `BackendUnavailableError` for a model that needs more than it may.

    Where a backend cannot say what it needs, it is taken to need its weights, as they lie in the folder: the least.
    """
    if limit_bytes is None:
        return
    needed = needed_bytes or sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    if needed > limit_bytes:
        raise BackendUnavailableError(
            f"the model needs {needed / 2**30:.1f} GiB, and {MEMORY_SHARE:.0%} of this machine's memory are "
            f"{limit_bytes / 2**30:.1f} GiB"
        )


def embedding_choice(
    hardware: Hardware, absence: Absence = not_installed, measured: Measurement | None = None
) -> Choice:
    """The backends for embeddings, best first."""
    order, reasons = _embedding_order(hardware)
    if measured is not None and set(order) & set(TO_BE_PROVEN):
        order, said = _by_measurement(order, measured)
        reasons += said
    candidates = []
    for name in order:
        if (why := absence(name)) is None:
            candidates.append(name)
        else:
            reasons.append(f"{name}: {why}")
    return Choice(tuple(candidates), tuple(reasons))


def rerank_choice(hardware: Hardware, absence: Absence = not_installed) -> Choice:
    """The backends for rerankers, best first: those for embeddings but Core ML and Core AI."""
    choice = embedding_choice(hardware, absence)
    out = tuple(name for name in choice.candidates if name in TO_BE_PROVEN)
    candidates = tuple(name for name in choice.candidates if name not in out)
    return Choice(candidates, (*choice.reasons, *(f"{name}: runs no rerankers" for name in out)))


def _embedding_order(hardware: Hardware) -> tuple[list[str], list[str]]:
    if not hardware.apple_silicon:
        if hardware.rosetta:
            why = "this Python runs under Rosetta, which reaches neither Neural Engine nor MLX: install a native one"
        elif hardware.system == "Darwin":
            why = "this Mac has an Intel processor and no Neural Engine"
        else:
            why = "this machine is not Apple silicon"
        return ["cpu", "numpy"], [f"{why}; embeddings run on the CPU"]
    if hardware.virtual:
        return ["mlx", "cpu", "numpy"], ["a virtual machine: its Neural Engine is not to be counted on, nor measured"]
    if hardware.neural_engine is False:
        return ["mlx", "cpu", "numpy"], ["Core ML lists no Neural Engine here; embeddings run on the GPU"]
    generation = hardware.generation
    if generation is None or generation < NEURAL_ENGINE_GENERATION:
        chip = "M1 to M3" if generation is not None else f"a chip not known here ({hardware.chip})"
        return ["mlx", *_packages(hardware), "cpu", "numpy"], [
            f"{chip}: embeddings run on the GPU until a measurement on this machine finds the Neural Engine faster "
            "(`impetus-worker verify` measures)"
        ]
    reasons = [
        "M4 or later: embeddings run on the Neural Engine, if Core ML places 90 % of the model's cost there and a "
        "timed probe finds it faster than the next backend"
    ]
    if generation > NEURAL_ENGINE_GENERATION:
        reasons.append("from the M5 on the GPU may well be faster at batches: the probe decides")
    least = "1 GiB" if version(hardware.macos) >= _CORE_AI_MACOS else "2 GiB, and from macOS 27 on 1 GiB,"
    reasons.append(
        f"Core ML packages above {least} have been seen to run on the CPU (unverified by us): such a model wants its "
        "weights in 8 bits (`impetus-worker convert --quantize int8`) or mlx"
    )
    if "coreai" in _packages(hardware):
        reasons.append("macOS 27 has Core AI: the probe times it too (unverified: not yet run on a Mac)")
    return [*_packages(hardware), "mlx", "cpu", "numpy"], reasons


def _packages(hardware: Hardware) -> list[str]:
    """What may reach the Neural Engine under this macOS."""
    return ["coreml", "coreai"] if version(hardware.macos) >= _CORE_AI_MACOS else ["coreml"]


def _by_measurement(order: list[str], measured: Measurement) -> tuple[list[str], list[str]]:
    """What had to prove itself just before or just behind what it was measured against."""
    seconds = dict(measured.seconds)
    rival = next((name for name in order if name in seconds and name not in TO_BE_PROVEN), None)
    proven = sorted(
        (name for name in order if name in seconds and name in TO_BE_PROVEN), key=lambda name: seconds[name]
    )
    if rival is None or not proven:
        return order, []
    order = [name for name in order if name not in proven]
    faster = [name for name in proven if seconds[name] < seconds[rival]]
    at = order.index(rival)
    order[at : at + 1] = [*faster, rival, *(name for name in proven if name not in faster)]
    verdicts = [f"{name} is {'faster' if name in faster else 'slower'} than {rival}" for name in proven]
    return order, [f"{measured}: {', '.join(verdicts)}"]


def generation_choice(hardware: Hardware, absence: Absence = not_installed) -> Choice:
    """The backends for generation: MLX, or none."""
    if (why := absence(LM)) is not None:
        return Choice((), (f"mlx: {why}",))
    if hardware.apple_silicon:
        where = "on the GPU" + (", if this virtual machine passes one on" if hardware.virtual else "")
    else:
        where = "on the CPU: slow, and good for trials"
    profile, why_profile = loader_profile(hardware)
    return Choice(("mlx",), (f"mlx: generation runs {where}", *why_profile), profile)


def loader_profile(hardware: Hardware) -> tuple[str, list[str]]:
    """The profile of generation through MLX that suits the GPU, and why where there was something to decide."""
    if hardware.neural_accelerators_likely:
        return "m5", [
            f"loader profile m5: {hardware.gpu_architecture} under macOS {hardware.macos} likely has neural "
            "accelerators that MLX uses (unverified: no call of MLX's tells); it reads prompts in longer steps, and "
            "what comes unquantised is loaded in 4 and 6 bits (unverified until `impetus-worker verify` has run on one)"
        ]
    if hardware.apple_silicon and (hardware.generation or 0) > NEURAL_ENGINE_GENERATION:
        return "standard", [
            "loader profile standard: the neural accelerators of an M5's GPU need macOS 26.2 and MLX's wheel for "
            "macOS 26, and one of the two was not found"
        ]
    return "standard", []
