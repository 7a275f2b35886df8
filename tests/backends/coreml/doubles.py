"""Core ML devices that are none: placed as on a Mac, and faulty as a Mac may be."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np

from impetus_backends.embedding.devices.coreml.emulated import EmulatedDevice
from impetus_backends.embedding.devices.coreml.form import COREML
from impetus_backends.embedding.devices.packages.backend import PackagedEmbeddingBackend
from impetus_backends.embedding.devices.packages.buckets import Bucket
from impetus_backends.embedding.devices.packages.cache import PackageCache
from impetus_backends.embedding.devices.packages.device import Placement, one_by_one
from impetus_backends.errors import BackendUnavailableError

from ...worker.conftest import fleet  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from impetus_backends.embedding.devices.packages.device import Given, Predictor
    from impetus_backends.embedding.folder.config import EmbeddingConfig


BUCKETS = (Bucket(1, 32), Bucket(4, 32), Bucket(1, 40))


class PlacedDevice(EmulatedDevice):
    """As on a Mac: with a compute plan, compiled files, and a name to be earned."""

    label = "ane"
    timed = True
    note = None

    def __init__(self, share: float = 0.97) -> None:
        super().__init__()
        self.share = share
        self.compiled: list[Path] = []
        self.asked: list[str] = []
        self.inputs: list[Given] = []

    def compile(self, package: Path, folder: Path) -> Path:
        self.compiled.append(package)
        (folder / "model.mlmodelc").symlink_to(package)
        return folder / "model.mlmodelc"

    def load(self, compiled: Path, function: str) -> Predictor:
        predict = super().load(compiled, function)

        def watched(given: Sequence[Given]) -> Sequence[np.ndarray]:
            self.inputs += given
            return predict(given)

        return watched

    def placement(self, package: Path, compiled: Path, function: str) -> Placement | None:
        self.asked.append(function)
        share = self.share if function.startswith("batch4") else 0.99
        return Placement(share, 0.0, 1 - share)


def backend_on(
    device: EmulatedDevice, config: EmbeddingConfig, converted: Path, version: str | None = None
) -> PackagedEmbeddingBackend:
    # A system of its own, so that nothing compiled for another test is found.
    device.version = version or uuid4().hex
    return PackagedEmbeddingBackend(
        config, lambda: device, PackageCache(COREML, converted), name="coreml", buckets=BUCKETS
    )


class Refusing(PlacedDevice):
    """Fails at one step as a Mac might."""

    def __init__(self, step: str) -> None:
        super().__init__()
        self._step = step

    def compile(self, package: Path, folder: Path) -> Path:
        if self._step == "compile":
            raise RuntimeError("Error compiling model: E5RT 11")
        return super().compile(package, folder)

    def load(self, compiled: Path, function: str) -> Predictor:
        if self._step == "load":
            raise RuntimeError("Unable to load the function")
        predict = super().load(compiled, function)

        def faulty(inputs: Given) -> np.ndarray:
            (vectors,) = predict([inputs])
            if self._step == "predict" and function.startswith("batch4"):
                raise RuntimeError("ANE timeout")
            if self._step == "drop":
                return vectors[:1]
            if self._step == "merge":
                return np.repeat(vectors[:1], len(vectors), axis=0)
            return -vectors if self._step == "wrong" and len(vectors) == 1 else vectors

        return one_by_one(faulty)

    def placement(self, package: Path, compiled: Path, function: str) -> Placement | None:
        if self._step == "plan":
            raise RuntimeError("no plan")
        return super().placement(package, compiled, function)


class Garbled(EmulatedDevice):
    """Right shapes, wrong vectors, and no plan by which to doubt it."""

    def load(self, compiled: Path, function: str) -> Predictor:
        predict = super().load(compiled, function)
        return lambda given: predict([{**inputs, "mask": np.ones_like(inputs["mask"])} for inputs in given])


def refuse_conversion(*_: object, **__: object) -> None:
    raise BackendUnavailableError("coremltools could not convert the model: no such operation")
