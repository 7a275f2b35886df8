"""The Core ML backend with everything real but the device, which is the evaluator or a faulty variant of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from impetus_backends import dispatcher
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.coreml.emulated import EmulatedDevice
from impetus_backends.embedding.devices.coreml.form import COREML
from impetus_backends.embedding.devices.coreml.macos import CoreMLDevice
from impetus_backends.embedding.devices.packages.backend import PackagedEmbeddingBackend, needed_bytes
from impetus_backends.embedding.devices.packages.buckets import Bucket, choose
from impetus_backends.embedding.devices.packages.cache import PackageCache
from impetus_backends.embedding.devices.packages.device import Placement
from impetus_backends.embedding.devices.packages.runner import Timing
from impetus_backends.engine_config import EngineConfig
from impetus_backends.errors import RequestError

from ...worker.conftest import fleet  # noqa: F401 - a fixture
from ..conftest import small_model
from ..end_to_end import embedded_by_a_worker
from .doubles import BUCKETS, PlacedDevice, backend_on

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.embedding.folder.config import EmbeddingConfig

    from ...worker.conftest import Fleet


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
        for made, expected in zip(run([inputs, inputs]), expect([inputs, inputs]), strict=True):
            assert np.sum(made * expected, axis=1).min() >= 0.999
        assert np.sum(run([inputs])[0] * expect([inputs])[0], axis=1).min() >= 0.999
        assert device.placement(minilm_package, compiled, bucket.function) is not None


@pytest.mark.parametrize("damage", ["garbage", "half", "gone"])
def test_what_was_compiled_and_then_damaged_is_compiled_again(
    damage: str, config: EmbeddingConfig, converted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    version = f"15.{damage}"
    backend_on(PlacedDevice(), config, converted, version).load()
    (told,) = converted.glob(f"coreml/*/ane-{version}/prepared.json")
    if damage == "gone":
        (told.parent / "model.mlmodelc").unlink()
    else:
        told.write_text("\x00" * 7 if damage == "garbage" else '{"compiled": "model.mlmodelc"}')
    again = PlacedDevice()
    backend = backend_on(again, config, converted, version)
    backend.load()
    assert len(again.compiled) == 1
    assert "is damaged, and is made again" in caplog.text
    assert backend.placement.keys() == set(BUCKETS)
