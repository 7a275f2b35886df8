"""Core AI's runtime: Apple's own, in the library on Linux, and of the system on macOS 27 and later.

What is asked of a Mac alone, where it would run, has not been run on one: `_placed` is all of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import platform
import weakref
from typing import TYPE_CHECKING, Any

from impetus_backends.embedding.devices.coreai.library import PACKAGE, coreai
from impetus_backends.embedding.devices.coreai.package import FIRST_MACOS
from impetus_backends.embedding.devices.packages.form import OUTPUT
from impetus_backends.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from impetus_backends.embedding.devices.packages.device import Given, Placement, Predictor


class CoreAIDevice:
    """Runs assets. One thread must load and use it: the runtime's calls are awaited on a loop of its own."""

    def __init__(self) -> None:
        """Raises `BackendUnavailableError` where the library or, on a Mac, the system has no Core AI."""
        self._on_mac = platform.system() == "Darwin"
        system = platform.mac_ver()[0] if self._on_mac else ""
        if self._on_mac and int(system.partition(".")[0]) < FIRST_MACOS:
            raise BackendUnavailableError(f"Core AI needs macOS {FIRST_MACOS} or later, and this is {system}")
        self._ai = coreai()
        self.timed = self._on_mac
        self.label = "coreai" if self._on_mac else "cpu"
        self.version = f"{system or platform.system()}-{self._ai.version}"
        self.note: str | None = (
            "Core AI chooses between Neural Engine, GPU and CPU, and does not tell (unverified: not yet run on a Mac)"
            if self._on_mac
            else "Apple's Core AI runtime on a CPU: its vectors are meant, its speed is not"
        )
        self._loop = asyncio.new_event_loop()
        weakref.finalize(self, self._loop.close)
        self._functions: dict[Path, dict[str, Any]] = {}

    def compile(self, package: Path, folder: Path) -> Path:
        """The asset as it is: the runtime specialises it when it is loaded, and keeps what it made itself."""
        return package

    def load(self, compiled: Path, function: str) -> Predictor:
        if compiled not in self._functions:
            self._functions[compiled] = self._loop.run_until_complete(self._load(compiled))
        loaded = self._functions[compiled][function]

        def predict(given: Sequence[Given]) -> list[np.ndarray]:
            calls = [{name: self._ai.array(array) for name, array in each.items()} for each in given]
            made = [each[OUTPUT].numpy() for each in self._loop.run_until_complete(_call(loaded, calls))]
            return [vectors.reshape(-1, vectors.shape[-1]) for vectors in made]

        return predict

    async def _load(self, package: Path) -> dict[str, Any]:
        """All functions: what the library compiled for them is on disk only meanwhile."""
        check_asset(package, self._ai.version)
        async with self._ai.asset.load(package).executable(_placed() if self._on_mac else None) as model:
            return {name: model.load_function(name) for name in model.function_names}

    def placement(self, package: Path, compiled: Path, function: str) -> Placement | None:
        """None: Core AI has no compute plan to ask."""
        return None


def check_asset(package: Path, version: str) -> None:
    """Raises `BackendUnavailableError` for an asset that is damaged, or of another version of the library: the runtime
    itself ends the process over one."""
    try:
        about = json.loads((package / "metadata.json").read_text(encoding="utf-8"))
        with (package / "main.mlirb").open("rb") as program:
            digest = hashlib.file_digest(program, "sha256").digest()
        whole = digest == (package / "main.hash").read_bytes()
        producer = about["producer"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackendUnavailableError(f"{package} is no Core AI asset that can be read: {error}") from error
    if producer != f"{PACKAGE} {version}":
        raise BackendUnavailableError(f"{package} was written by {producer}, and {PACKAGE} {version} is installed")
    if not whole:
        raise BackendUnavailableError(f"{package} is damaged: remove its folder, and it is made again")


async def _call(function: Any, calls: Sequence[dict[str, Any]]) -> list[Any]:
    """All begin before any is waited for, and none runs on when one of them fails."""
    made = await asyncio.gather(*(function(given) for given in calls), return_exceptions=True)
    for each in made:
        if isinstance(each, BaseException):
            raise each
    return made


def _placed() -> Any:
    """The Neural Engine where the system may, for the queue's other kind of work has the GPU. Unverified."""
    from coreai.runtime import ComputeUnitKind, SpecializationOptions

    if not SpecializationOptions.is_supported():
        return None
    return SpecializationOptions.from_preferred_compute_unit_kind(ComputeUnitKind.neural_engine())


def mode_here() -> str:
    """How backends store weights by themselves: float16 for a Mac's engines; a CPU here would emulate it, slowly."""
    return "none" if platform.system() == "Darwin" else "fp32"
