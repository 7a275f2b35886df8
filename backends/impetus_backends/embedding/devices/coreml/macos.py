"""Core ML itself, through coremltools: everything here that only a Mac can run. Not yet run on one.

API: https://apple.github.io/coremltools/source/coremltools.models.html. Two of its ways to abort the process are kept
off: a compute plan is asked of a compiled model only (apple/coremltools#2757), and nothing here runs in a forked child.
"""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impetus_backends.embedding.devices.coreml import package
from impetus_backends.embedding.devices.coreml.library import coremltools
from impetus_backends.embedding.devices.packages.device import Placement
from impetus_backends.embedding.devices.packages.form import OUTPUT
from impetus_backends.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from impetus_backends.embedding.devices.packages.device import Given, Predictor


class CoreMLDevice:
    """This Mac's Neural Engine, with its CPU for what the engine cannot do. Never its GPU."""

    label = "ane"
    timed = True
    note: str | None = None

    def __init__(self) -> None:
        """Raises `BackendUnavailableError` where there is no Core ML that knows multifunction packages."""
        if platform.system() != "Darwin":
            raise BackendUnavailableError(
                "Core ML runs on macOS alone; the coreml-emulated backend runs its packages anywhere, slowly"
            )
        self.version = platform.mac_ver()[0]
        if int(self.version.partition(".")[0]) < package.FIRST_MACOS:
            raise BackendUnavailableError(
                f"our packages need macOS {package.FIRST_MACOS} or later, and this is {self.version}"
            )
        self._ct = coremltools()

    def compile(self, package: Path, folder: Path) -> Path:
        target = folder / "model.mlmodelc"
        return Path(self._ct.models.utils.compile_model(str(package), destination_path=str(target)))

    def load(self, compiled: Path, function: str) -> Predictor:
        # The first load on a Mac has the Neural Engine's compiler run, which can take minutes.
        model = self._ct.models.CompiledMLModel(
            str(compiled), compute_units=self._ct.ComputeUnit.CPU_AND_NE, function_name=function
        )

        def predict(given: Sequence[Given]) -> list[np.ndarray]:
            if len(given) == 1:
                return [model.predict(dict(given[0]))[OUTPUT]]
            # Core ML's own batches: it has the next call ready while one runs. Threads would not do, as coremltools
            # keeps Python's lock while it predicts.
            return [made[OUTPUT] for made in model.predict([dict(each) for each in given])]

        return predict

    def placement(self, package: Path, compiled: Path, function: str) -> Placement | None:
        """Raises `BackendUnavailableError` where the compute plan says nothing about the function."""
        found = self._plan(compiled, function)
        if found is None:
            # Core ML plans the default function alone, and coremltools cannot name another.
            with tempfile.TemporaryDirectory() as folder:
                spec = self._ct.utils.load_spec(str(package))
                spec.description.defaultFunctionName = function
                weights = package / "Data" / "com.apple.CoreML" / "weights"
                alone = Path(folder) / "model.mlpackage"
                self._ct.utils.save_spec(spec, str(alone), weights_dir=str(weights))
                found = self._plan(self.compile(alone, Path(folder)), function)
        if found is None:
            raise BackendUnavailableError(f"Core ML's compute plan says nothing about the function {function}")
        return found

    def _plan(self, compiled: Path, function: str) -> Placement | None:
        from coremltools.models.compute_device import MLGPUComputeDevice, MLNeuralEngineComputeDevice
        from coremltools.models.compute_plan import MLComputePlan

        plan = MLComputePlan.load_from_path(str(compiled), compute_units=self._ct.ComputeUnit.CPU_AND_NE)
        program: Any = plan.model_structure.program
        neural_engine = gpu = cpu = 0.0
        for operation in program.functions[function].block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
            if usage is None or cost is None:
                continue  # constants run nowhere
            preferred = usage.preferred_compute_device
            if isinstance(preferred, MLNeuralEngineComputeDevice):
                neural_engine += cost.weight
            elif isinstance(preferred, MLGPUComputeDevice):
                gpu += cost.weight
            else:
                cpu += cost.weight
        total = neural_engine + gpu + cpu
        return Placement(neural_engine / total, gpu / total, cpu / total) if total else None
