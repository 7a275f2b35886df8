"""Where Core ML cannot serve, or not well: the reason is told with its figures, and the next backend serves."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from impetus_backends import dispatcher
from impetus_backends.candidates import Means
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.coreml.emulated import EmulatedDevice
from impetus_backends.embedding.devices.coreml.form import COREML
from impetus_backends.embedding.devices.packages.backend import PackagedEmbeddingBackend
from impetus_backends.embedding.devices.packages.cache import PackageCache
from impetus_backends.engine_config import EngineConfig
from impetus_backends.errors import BackendError, BackendUnavailableError, ModelError
from impetus_backends.machine.hardware import detect
from impetus_backends.machine.measurements import MeasurementCache

from ...worker.conftest import fleet  # noqa: F401 - a fixture
from ..conftest import small_model
from .doubles import BUCKETS, Garbled, PlacedDevice, Refusing, backend_on, refuse_conversion

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.embedding.devices.backend import EmbeddingBackend
    from impetus_backends.embedding.folder.config import EmbeddingConfig


@pytest.mark.parametrize(
    ("macos", "gib", "said"),
    [
        ("26.2", 1.9, None),
        ("26.2", 2.1, "above 2 GiB"),
        ("27.0", 1.1, "above 1 GiB"),
        ("", 2.1, "above 2 GiB"),
        ("27.0", 0.9, None),
    ],
)
def test_a_package_that_core_ml_runs_on_the_cpu_in_silence_is_told_with_the_remedy(
    macos: str, gib: float, said: str | None
) -> None:
    told = COREML.too_large(int(gib * 2**30), macos)
    assert (told is None) == (said is None)
    assert said is None or (told is not None and said in told and "--quantize int8" in told)


def test_too_little_on_the_neural_engine_names_the_size_where_that_may_be_why(
    config: EmbeddingConfig, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impetus_backends.embedding.devices.packages.backend.size_of", lambda package: 3 * 2**30)
    with pytest.raises(BackendUnavailableError, match=r"4x32: 42% .*; the package has 3\.0 GiB, and above 1 GiB"):
        backend_on(PlacedDevice(0.42), config, converted, "27.0").load()


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (lambda: PlacedDevice(0.42), r"needed: 4x32: 42% \(CPU 58%, GPU 0%\)"),
        (lambda: Refusing("compile"), "could not compile the package: RuntimeError: Error compiling model: E5RT 11"),
        (lambda: Refusing("plan"), "could not read the compute plan of 1x32: RuntimeError: no plan"),
        (lambda: Refusing("load"), "could not load the function batch1_length32: RuntimeError: Unable to load"),
        (lambda: Refusing("predict"), "could not run the package: RuntimeError: ANE timeout"),
        (lambda: Refusing("drop"), r"bucket 4x32 returned \(1, 16\) and not \(4, 16\)"),
        (lambda: Refusing("merge"), "the buckets 4x32 and 1x40 disagree on the same text: cosine"),
        (lambda: Refusing("wrong"), "the buckets 4x32 and 1x40 disagree on the same text: cosine -"),
    ],
    ids=["placement", "compile", "plan", "load", "predict", "drop", "merge", "wrong"],
)
def test_a_device_that_fails_makes_the_backend_unavailable_with_figures(
    device: type[PlacedDevice], reason: str, config: EmbeddingConfig, converted: Path
) -> None:
    with pytest.raises(BackendUnavailableError, match=reason):
        backend_on(device(), config, converted).load()


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (lambda: PlacedDevice(0.42), "coreml: Core ML places too little of the cost on the Neural Engine, and 90% is"),
        (lambda: Refusing("compile"), "coreml: could not compile the package: RuntimeError: Error compiling"),
        (Garbled, "coreml: coreml on emulated disagrees with the reference: cosine 0."),
        (None, "coreml: coremltools could not convert the model: no such operation"),
    ],
    ids=["placement", "compile", "golden", "convert"],
)
def test_the_dispatcher_goes_on_to_the_next_backend_and_says_why(
    device: type[EmulatedDevice] | None,
    reason: str,
    config: EmbeddingConfig,
    converted: Path,
    tmp_path: Path,
) -> None:
    def make(name: str, model: EmbeddingConfig) -> EmbeddingBackend:
        if name != "coreml":
            return make_backend(name, model)
        if device is None:
            form = replace(COREML, build=refuse_conversion)
            return PackagedEmbeddingBackend(config, EmulatedDevice, PackageCache(form, tmp_path), name="coreml")
        return backend_on(device(), config, converted)

    mac = replace(detect(), system="Darwin", machine="arm64", generation=4, neural_engine=True)
    means = Means(MeasurementCache(tmp_path), make, lambda name: None if name in ("coreml", "numpy") else "not here")
    engine = dispatcher.open_embedding(EngineConfig("embedding", model=str(small_model("bge"))), mac, means)
    assert engine.info.backend == "numpy"
    assert any(each.startswith(reason) for each in engine.info.reasons), engine.info.reasons


@pytest.mark.skipif(sys.platform == "darwin", reason="there is a Core ML on a Mac")
def test_core_ml_itself_is_not_to_be_had_here_and_the_reason_names_what_is() -> None:
    with pytest.raises(BackendUnavailableError, match="macOS alone; the coreml-emulated backend runs"):
        make_backend("coreml", small_model("bge")).load()


def test_without_coremltools_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'impetus-batch\[coreml\]'"):
        make_backend("coreml-emulated", small_model("bge")).load()


def test_a_model_with_bad_files_is_a_model_error_and_not_an_unavailable_backend(
    config: EmbeddingConfig, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    broken = type(config)(tmp_path, config.encoder, config.pooling, config.text)
    with pytest.raises(ModelError, match="no tensor"):
        PackagedEmbeddingBackend(broken, EmulatedDevice, PackageCache(COREML, tmp_path / "cache"), name="coreml").load()


def test_a_broken_package_in_the_cache_is_told_by_its_path(config: EmbeddingConfig, tmp_path: Path) -> None:
    cache = PackageCache(COREML, tmp_path)
    PackagedEmbeddingBackend(config, EmulatedDevice, cache, name="coreml", buckets=BUCKETS[:1]).load()
    (model,) = tmp_path.rglob("model.mlmodel")
    model.write_bytes(b"\xff" * 100)
    with pytest.raises(BackendError, match=rf"{tmp_path}.*is not a Core ML package"):
        PackagedEmbeddingBackend(config, EmulatedDevice, cache, name="coreml", buckets=BUCKETS[:1]).load()
