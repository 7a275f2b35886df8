"""Shapes for the texts that came: converted beside the work, checked, and taken over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from impetus_backends import models
from impetus_backends.embedding.devices.coreml.emulated import EmulatedDevice
from impetus_backends.embedding.devices.coreml.form import COREML
from impetus_backends.embedding.devices.packages import converting, fitter
from impetus_backends.embedding.devices.packages.backend import PackagedEmbeddingBackend, needed_bytes
from impetus_backends.embedding.devices.packages.buckets import Bucket
from impetus_backends.embedding.devices.packages.cache import PackageCache, Recipe
from impetus_backends.embedding.devices.packages.device import one_by_one
from impetus_backends.embedding.devices.packages.fitter import Fitter
from impetus_backends.embedding.folder.weights import fingerprint
from impetus_backends.engine_config import Fitting
from impetus_backends.machine import spare
from impetus_producer import Producer
from impetus_worker.roles import engine_config
from impetus_worker.settings import WorkerSettings
from tests.patience import eventually

from ...worker.conftest import fleet  # noqa: F401 - a fixture
from ..conftest import small_model
from .fitted_shapes import CONFIG, POOR, request_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from impetus_backends.embedding.devices.packages.device import Given, Predictor
    from impetus_backends.embedding.devices.packages.served import Trial

    from ...worker.conftest import Fleet

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder whose preferred package has one poor shape."""
    folder = tmp_path_factory.mktemp("poor")
    poor_backend(folder).load()
    PackageCache(COREML, folder).prefer(Recipe(fingerprint(CONFIG), "none", POOR))
    return folder


@pytest.fixture
def cache(converted: Path, tmp_path: Path) -> PackageCache:
    return PackageCache(COREML, Path(shutil.copytree(converted, tmp_path / "cache")))


@pytest.fixture
def mains() -> Iterator[None]:
    spare.say(True)
    yield
    spare.say(False)


def poor_backend(folder: Path, device: type[EmulatedDevice] = EmulatedDevice) -> PackagedEmbeddingBackend:
    return PackagedEmbeddingBackend(CONFIG, device, PackageCache(COREML, folder), name="coreml-emulated", buckets=POOR)


def fitted(cache: PackageCache, **options: Any) -> tuple[PackagedEmbeddingBackend, Fitter]:
    """A backend whose fitter is not started, and has counted enough."""
    backend = poor_backend(cache.root)
    backend.load()
    found = Fitter(backend, models.resolve(str(small_model("bge"))), Fitting(8), **options)
    backend.fit(found)
    backend.embed(rows_of(10))
    return backend, found


def rows_of(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.integers(5, CONFIG.encoder.vocab_size, int(size), dtype=np.int32)
            for size in random.integers(33, 40, count)]  # fmt: skip


def trial_of(cache: PackageCache) -> Trial | None:
    return cache.served(fingerprint(CONFIG), CONFIG.text.max_tokens).trial


@pytest.mark.system
def test_better_shapes_are_checked_and_taken_over_between_two_batches(
    cache: PackageCache, mains: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, found = fitted(cache)
    convert_here(found, cache, monkeypatch)
    before, rows = backend.timings.keys(), rows_of(6)
    expected = backend.embed(rows)
    found._look()
    assert backend.timings.keys() == before == set(POOR)
    vectors = backend.embed(rows)
    assert backend.timings.keys() != before
    assert Bucket(1, 40) in backend.timings
    assert np.sum(vectors * expected, axis=1).min() >= 0.9999
    trial = trial_of(cache)
    assert trial is not None
    assert trial.said.startswith("served, least cosine 0.999")
    assert cache.preferred(fingerprint(CONFIG)) == backend.recipe
    # From then on it is not tried again for a day, whatever comes.
    backend.embed(rows_of(40))
    found._look()
    assert found.take() is None


def convert_here(found: Fitter, cache: PackageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, whose libraries are imported."""

    def convert(recipe: Recipe) -> bool:
        buckets = [[bucket.batch, bucket.length, bucket.texts] for bucket in recipe.buckets]
        converting.convert({**request_of(small_model("bge"), cache.root), "buckets": buckets})
        return True

    monkeypatch.setattr(found, "_converted", convert)


def test_a_package_that_was_made_for_earlier_texts_goes_when_another_serves(
    cache: PackageCache, mains: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache.find(Recipe(fingerprint(CONFIG), "none", POOR)) is not None
    cache.mark_fitted(Recipe(fingerprint(CONFIG), "none", POOR))
    backend, found = fitted(cache)
    convert_here(found, cache, monkeypatch)
    found._look()
    assert len(list((cache.root / "coreml").glob(f"*/{COREML.file}"))) == 2
    backend.embed(rows_of(1))
    found._look()
    (left,) = (cache.root / "coreml").glob(f"*/{COREML.file}")
    assert backend.recipe is not None
    assert left == cache.package(cache.find(backend.recipe) or Path())
    assert backend.embed(rows_of(3)).shape == (3, CONFIG.dimensions)


@pytest.mark.system
@pytest.mark.timeout(300)  # the conversion gives way to whatever else runs on the machine
def test_a_worker_fits_its_shapes_to_the_jobs_that_come(
    fleet: Fleet,  # noqa: F811
    cache: PackageCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "home").mkdir()
    cache.root.rename(tmp_path / "home" / "impetus")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    worker = fleet.start(
        *("--embedding-backend", "coreml-emulated", "--embedding-model", str(small_model("bge"))),
        *("--fit-after-texts", "10", "--fit-look-s", "0.1"),
    )
    producer: Producer = Producer(connection=fleet.connection)
    texts = ["jumps over the lazy dog " * count for count in (3, 4, 5, 6, 7, 8)] * 2
    first = producer.embed(texts).result(timeout_s=60).vectors
    eventually(lambda: "from the next batch on: " in worker.log, limit_s=60)
    assert "of the padded work of" in worker.log
    again = producer.embed(texts).result(timeout_s=60).vectors
    assert np.sum(np.asarray(first) * np.asarray(again), axis=1).min() >= 0.9999
    fitted_recipe = PackageCache(COREML, tmp_path / "home" / "impetus").preferred(fingerprint(CONFIG))
    assert fitted_recipe is not None
    assert fitted_recipe.buckets != POOR
    assert worker.stop() == 0


def test_nothing_is_converted_on_battery_nor_before_enough_texts_came(
    cache: PackageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)  # it would raise
    _, found = fitted(cache)
    spare.say(False)
    found._look()
    _, few = fitted(cache)
    few._terms = replace(few._terms, after_texts=11)
    spare.say(True)
    few._look()
    spare.say(False)
    assert trial_of(cache) is None


def test_two_packages_that_do_not_fit_the_memory_together_are_not_tried(cache: PackageCache, mains: None) -> None:
    _, found = fitted(cache, memory_bytes=needed_bytes(CONFIG, POOR))
    found._look()
    trial = trial_of(cache)
    assert trial is not None
    assert "both packages together would need" in trial.said


class Garbled(EmulatedDevice):
    """Makes something else of every function but that of the poor shape."""

    def load(self, compiled: Path, function: str) -> Predictor:
        predict = super().load(compiled, function)
        return predict if function == POOR[0].function else lambda given: [-made for made in predict(given)]


class Raising(EmulatedDevice):
    """Loads every function, and runs that of the poor shape alone."""

    def load(self, compiled: Path, function: str) -> Predictor:
        if function == POOR[0].function:
            return super().load(compiled, function)
        return one_by_one(self.fail)

    @staticmethod
    def fail(given: Given) -> np.ndarray:
        raise RuntimeError("the engine timed out")


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (Garbled, "coreml-emulated on emulated disagrees with the reference"),
        (Raising, "the engine timed out"),
    ],
)
def test_shapes_that_fail_the_golden_check_are_removed_and_the_others_serve_on(
    device: type[EmulatedDevice],
    reason: str,
    cache: PackageCache,
    mains: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend, found = fitted(cache)
    monkeypatch.setattr(found, "_converted", lambda recipe: True)
    monkeypatch.setattr(found, "_make_device", device)
    found._look()
    assert found.take() is None
    assert f"the shapes stay as they are: {reason}" in caplog.text
    trial, preferred = trial_of(cache), cache.preferred(fingerprint(CONFIG))
    assert trial is not None
    assert trial.said.startswith(f"failed: {reason}")
    assert preferred is not None
    assert preferred.buckets == POOR
    assert len(list((cache.root / "coreml").glob(f"*/{COREML.file}"))) == 1
    assert backend.embed(rows_of(2)).shape == (2, CONFIG.dimensions)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Conversions that never end by themselves, as they are started."""
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    monkeypatch.setattr(fitter, "CONVERTING", "waiting_conversion")
    monkeypatch.setattr(fitter, "_POLL_S", 0.01)
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    yield started
    assert all(process.returncode is not None for process in started)


def test_a_conversion_that_is_killed_is_told_and_changes_nothing(
    cache: PackageCache, mains: None, waiting: list[subprocess.Popen[bytes]]
) -> None:
    _, found = fitted(cache)
    looking = threading.Thread(target=found._look)
    looking.start()
    eventually(lambda: waiting)
    os.kill(waiting[0].pid, signal.SIGKILL)
    looking.join(20)
    trial = trial_of(cache)
    assert trial is not None
    assert trial.said == "failed: the conversion ended without an answer (status -9)"
    assert found.take() is None


@pytest.mark.parametrize("how", ["closed", "on battery"])
def test_a_conversion_ends_with_the_engine_or_its_mains_and_may_be_tried_again(
    how: str, cache: PackageCache, mains: None, waiting: list[subprocess.Popen[bytes]]
) -> None:
    backend, found = fitted(cache)
    found._terms = replace(found._terms, look_s=0.01)
    found.start()
    eventually(lambda: waiting)
    if how == "closed":
        backend.close()
    else:
        spare.say(False)
    eventually(lambda: waiting[0].returncode is not None)
    backend.close()
    found._thread.join(20)
    assert not found._thread.is_alive()
    assert trial_of(cache) is None


def test_shapes_are_fitted_unless_a_worker_is_told_to_keep_them() -> None:
    told = WorkerSettings(("redis://localhost",), "embedding", "worker")
    assert engine_config(told).fitting is None
    assert engine_config(replace(told, fit_after_texts=9, fit_look_s=2)).fitting == Fitting(9, 2)
