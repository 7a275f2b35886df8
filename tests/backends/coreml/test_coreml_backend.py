"""The Core ML backend with everything real but the device, which is the evaluator or a faulty variant of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import pytest

from impetus_backends import dispatcher
from impetus_backends.candidates import Means
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.coreml.emulated import EmulatedDevice
from impetus_backends.embedding.devices.coreml.form import COREML
from impetus_backends.embedding.devices.coreml.macos import CoreMLDevice
from impetus_backends.embedding.devices.packages.backend import PackagedEmbeddingBackend, needed_bytes
from impetus_backends.embedding.devices.packages.buckets import Bucket, choose
from impetus_backends.embedding.devices.packages.cache import PackageCache
from impetus_backends.embedding.devices.packages.device import Placement
from impetus_backends.embedding.devices.packages.runner import Timing
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_backends.errors import BackendError, BackendUnavailableError, ModelError, RequestError
from impetus_backends.hardware import detect
from impetus_backends.measurements import MeasurementCache
from impetus_backends.protocol import EngineConfig

from ...worker.conftest import fleet  # noqa: F401 - a fixture
from ..conftest import small_model
from ..end_to_end import embedded_by_a_worker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from impetus_backends.embedding.devices import backends
    from impetus_backends.embedding.devices.packages.device import Predictor
    from impetus_backends.embedding.folder.config import EmbeddingConfig

    from ...worker.conftest import Fleet

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
        self.inputs: list[Mapping[str, np.ndarray]] = []

    def compile(self, package: Path, folder: Path) -> Path:
        self.compiled.append(package)
        (folder / "model.mlmodelc").symlink_to(package)
        return folder / "model.mlmodelc"

    def load(self, compiled: Path, function: str) -> Predictor:
        predict = super().load(compiled, function)

        def watched(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            self.inputs.append(inputs)
            return predict(inputs)

        return watched

    def placement(self, package: Path, compiled: Path, function: str) -> Placement | None:
        self.asked.append(function)
        share = self.share if function.startswith("batch4") else 0.99
        return Placement(share, 0.0, 1 - share)


@pytest.fixture(scope="module")
def config() -> EmbeddingConfig:
    return read_config(small_model("bge"))


@pytest.fixture(scope="module")
def rows(texts: list[str]) -> list[np.ndarray]:
    return [text.ids for text in TextEncoder.load(small_model("bge")).encode(texts)]


@pytest.fixture(scope="module")
def converted(config: EmbeddingConfig, packages: Path) -> Path:
    """A cache folder that holds the small model, compiled for nothing yet."""
    cache = PackageCache(COREML, packages / "cache")
    PackagedEmbeddingBackend(config, EmulatedDevice, cache, name="coreml", buckets=BUCKETS).load()
    return packages / "cache"


def backend_on(
    device: EmulatedDevice, config: EmbeddingConfig, converted: Path, version: str | None = None
) -> PackagedEmbeddingBackend:
    # A system of its own, so that nothing compiled for another test is found.
    device.version = version or uuid4().hex
    return PackagedEmbeddingBackend(
        config, lambda: device, PackageCache(COREML, converted), name="coreml", buckets=BUCKETS
    )


def test_rows_go_to_several_buckets_and_come_back_in_their_order(
    config: EmbeddingConfig, converted: Path, rows: list[np.ndarray]
) -> None:
    backend = PackagedEmbeddingBackend(
        config, EmulatedDevice, PackageCache(COREML, converted), name="coreml", buckets=BUCKETS
    )
    backend.load()
    reference = make_backend("numpy", config)
    reference.load()
    vectors, expected = backend.embed(rows), reference.embed(rows)
    assert vectors.dtype == np.float32
    assert np.sum(vectors * expected, axis=1).min() >= 0.9999
    assert backend.timings.keys() == set(BUCKETS)
    assert sum(timing.rows for timing in backend.timings.values()) == len(rows)
    assert backend.timings[Bucket(4, 32)].calls >= 2
    assert backend.timings[Bucket(1, 40)].rows == sum(len(row) > 32 for row in rows)
    assert all(timing.seconds > 0 for timing in backend.timings.values() if timing.calls)


def test_a_row_that_the_model_cannot_read_is_refused_with_the_reason(config: EmbeddingConfig, converted: Path) -> None:
    backend = PackagedEmbeddingBackend(
        config, EmulatedDevice, PackageCache(COREML, converted), name="coreml", buckets=BUCKETS
    )
    backend.load()
    good = np.array([2, 7, 3], dtype=np.int32)
    with pytest.raises(RequestError, match="outside the vocabulary of 240"):
        backend.embed([good, np.array([2, 240, 3], dtype=np.int32)])
    with pytest.raises(RequestError, match="must be of 1 to 40"):
        backend.embed([good, np.full(41, 7, dtype=np.int32)])
    with pytest.raises(RequestError, match="must be of 1 to 40"):
        backend.embed([good, np.array([], dtype=np.int32)])
    with pytest.raises(RequestError, match="no rows at all"):
        backend.embed([])


def test_a_package_is_compiled_and_its_plan_read_once_a_system(config: EmbeddingConfig, converted: Path) -> None:
    first, again, upgraded = PlacedDevice(), PlacedDevice(), PlacedDevice()
    for device, version in ((first, "15.1"), (again, "15.1"), (upgraded, "15.2")):
        backend = backend_on(device, config, converted, version)
        backend.load()
        assert backend.device == "ane"
        assert backend.precision == "fp16"
        assert backend.note is not None
        assert backend.note.startswith("the compute plan places 97% of the cost on the Neural Engine; a call takes ")
        assert all(f"{bucket} " in backend.note for bucket in BUCKETS)
        assert backend.placement[Bucket(4, 32)] == Placement(0.97, 0.0, 1 - 0.97)
    assert [len(device.compiled) for device in (first, again, upgraded)] == [1, 0, 1]
    assert first.asked == [bucket.function for bucket in BUCKETS]
    assert again.asked == []


def test_input_arrays_are_not_written_to_for_some_calls_after_theirs(
    config: EmbeddingConfig, converted: Path, rows: list[np.ndarray]
) -> None:
    device = PlacedDevice()
    backend = backend_on(device, config, converted)
    backend.load()
    device.inputs.clear()
    short = [row for row in rows if len(row) <= 32][:3]
    copies = []
    for row in short:
        backend.embed([row])
        copies.append({name: array.copy() for name, array in device.inputs[-1].items()})
    for inputs, copy in zip(device.inputs, copies, strict=True):
        assert all(np.array_equal(inputs[name], copy[name]) for name in copy)
    for _ in range(20):
        backend.embed(short[:1])
    # A ring, and not an array a call.
    assert len({id(inputs["ids"]) for inputs in device.inputs}) <= 4


def test_every_bucket_runs_once_before_any_job_does(config: EmbeddingConfig, converted: Path) -> None:
    device = PlacedDevice()
    backend = backend_on(device, config, converted)
    backend.load()
    shapes = {inputs["ids"].shape for inputs in device.inputs}
    assert shapes == {(bucket.batch, bucket.length) for bucket in BUCKETS}
    assert all(timing == Timing() for timing in backend.timings.values())


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

        def faulty(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            vectors = predict(inputs)
            if self._step == "predict" and function.startswith("batch4"):
                raise RuntimeError("ANE timeout")
            if self._step == "drop":
                return vectors[:1]
            if self._step == "merge":
                return np.repeat(vectors[:1], len(vectors), axis=0)
            return -vectors if self._step == "wrong" and len(vectors) == 1 else vectors

        return faulty

    def placement(self, package: Path, compiled: Path, function: str) -> Placement | None:
        if self._step == "plan":
            raise RuntimeError("no plan")
        return super().placement(package, compiled, function)


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


class Garbled(EmulatedDevice):
    """Right shapes, wrong vectors, and no plan by which to doubt it."""

    def load(self, compiled: Path, function: str) -> Predictor:
        predict = super().load(compiled, function)
        return lambda inputs: predict({**inputs, "mask": np.ones_like(inputs["mask"])})


def refuse_conversion(*_: object, **__: object) -> None:
    raise BackendUnavailableError("coremltools could not convert the model: no such operation")


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
    def make(name: str, model: EmbeddingConfig) -> backends.EmbeddingBackend:
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


def test_an_emulated_engine_serves_after_its_golden_check_and_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPETUS_CACHE_DIR", str(tmp_path))
    model = str(small_model("distilbert"))
    info = dispatcher.open_engine(EngineConfig("embedding", model=model, backend="coreml-emulated")).info
    assert (info.backend, info.device, info.precision) == ("coreml-emulated", "emulated", "fp16")
    assert info.note == "a Core ML package emulated in numpy, no Neural Engine: its vectors are meant, its speed is not"
    assert info.fingerprint.endswith("/coreml-emulated/fp16")
    assert info.reasons[-1].startswith("coreml-emulated: golden check passed, least cosine 0.9999")


@pytest.mark.system
def test_a_worker_serves_jobs_through_the_emulated_device_from_end_to_end(
    fleet: Fleet,  # noqa: F811
    texts: list[str],
    rows: list[np.ndarray],
    config: EmbeddingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = embedded_by_a_worker(fleet, "coreml-emulated", texts, tmp_path, monkeypatch)
    reference = make_backend("numpy", config)
    reference.load()
    assert np.sum(np.asarray(result.vectors) * reference.embed(rows), axis=1).min() >= 0.9999
    assert result.provenance.device == "emulated"
    assert result.provenance.backend == "coreml-emulated"
    assert "no Neural Engine" in str(result.provenance.note)
    assert len(list((tmp_path / "impetus" / "coreml").glob(f"*/{COREML.file}"))) == 1


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


def test_the_memory_asked_for_covers_the_weights_of_every_bucket(minilm_config: EmbeddingConfig) -> None:
    buckets = choose(256)
    weights = 45e6
    assert needed_bytes(minilm_config, buckets[:1]) > 2 * weights
    assert needed_bytes(minilm_config, buckets) > 7 * weights
    assert needed_bytes(minilm_config, buckets) < 20 * weights


@pytest.mark.macos
@pytest.mark.skipif(sys.platform != "darwin", reason="needs Core ML")
@pytest.mark.system
def test_core_ml_itself_makes_the_vectors_of_the_evaluated_file(
    minilm_config: EmbeddingConfig, minilm_rows: list[np.ndarray], minilm_package: Path, tmp_path: Path
) -> None:
    device, emulated = CoreMLDevice(), EmulatedDevice()
    compiled = device.compile(minilm_package, tmp_path)
    for bucket in choose(256):
        run, expect = device.load(compiled, bucket.function), emulated.load(minilm_package, bucket.function)
        from impetus_backends.embedding.devices.operations import INPUTS
        from impetus_backends.embedding.encoder import pad

        fitting = sorted((row for row in minilm_rows if len(row) <= bucket.length), key=len)[-bucket.batch :]
        batch = pad(minilm_config, fitting, batch=bucket.batch, length=bucket.length)
        inputs = {name: np.ascontiguousarray(getattr(batch, name)) for name in INPUTS}
        assert np.sum(run(inputs) * expect(inputs), axis=1).min() >= 0.999
        assert device.placement(minilm_package, compiled, bucket.function) is not None
