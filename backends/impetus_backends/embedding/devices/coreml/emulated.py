"""The saved package in numpy in place of a device: the whole Core ML backend runs, and its speed means nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from impetus_backends.embedding.devices.coreml.evaluator import SavedFunction, SavedPackage
from impetus_backends.embedding.devices.coreml.library import coremltools
from impetus_backends.embedding.devices.packages.device import one_by_one

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from impetus_backends.embedding.devices.packages.device import Given, Placement, Predictor


class EmulatedDevice:
    """Any machine's CPU, rounding to float16 where the Neural Engine would."""

    label = "emulated"
    timed = False
    note: str | None = "a Core ML package emulated in numpy, no Neural Engine: its vectors are meant, its speed is not"

    def __init__(self) -> None:
        """Raises `BackendUnavailableError` without coremltools, which reads the package."""
        self.version: str = coremltools().__version__
        self._packages: dict[Path, SavedPackage] = {}

    def compile(self, package: Path, folder: Path) -> Path:
        return package

    def load(self, compiled: Path, function: str) -> Predictor:
        package = self._packages.setdefault(compiled, SavedPackage(compiled))
        loaded: list[SavedFunction] = []

        def predict(inputs: Given) -> np.ndarray:
            # Read at its first use: a second a function, and not every function is used.
            if not loaded:
                loaded.append(package.function(function))
            return loaded[0](inputs)

        return one_by_one(predict)

    def placement(self, package: Path, compiled: Path, function: str) -> Placement | None:
        return None
