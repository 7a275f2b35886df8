"""Shapes for the texts that come: counted, looked for, converted beside the work, checked, and taken over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impetus_backends import models
from impetus_backends.embedding.devices.backends import make_backend, make_packaged
from impetus_backends.embedding.devices.coreml.emulated import EmulatedDevice
from impetus_backends.embedding.devices.coreml.form import COREML
from impetus_backends.embedding.devices.packages import converting, fitter
from impetus_backends.embedding.devices.packages.backend import PackagedEmbeddingBackend, needed_bytes
from impetus_backends.embedding.devices.packages.buckets import DOCSTRING_LENGTHS, Bucket, suiting
from impetus_backends.embedding.devices.packages.cache import PackageCache, Recipe
from impetus_backends.embedding.devices.packages.convert import Order, add_measured
from impetus_backends.embedding.devices.packages.device import one_by_one
from impetus_backends.embedding.devices.packages.fitter import Fitter
from impetus_backends.embedding.devices.packages.fitting import LEAST_SAVED, fit
from impetus_backends.embedding.devices.packages.served import Served, Trial
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.folder.weights import fingerprint
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_backends.engine_config import Fitting
from impetus_backends.errors import BackendError
from impetus_backends.machine import spare
from impetus_producer import Producer
from impetus_worker.roles import engine_config
from impetus_worker.settings import WorkerSettings
from tests.patience import eventually

from ...worker.conftest import fleet  # noqa: F401 - a fixture
from ..conftest import small_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from impetus_backends.embedding.devices.packages.device import Given, Predictor

    from ...worker.conftest import Fleet

CONFIG = read_config(small_model("bge"))
POOR = (Bucket(32, 40),)
"""For whoever embeds one text at a time."""
HERE = Path(__file__).resolve().parent


# -- what is counted ---------------------------------------------------------------------------------------------------


def test_lengths_are_counted_in_steps_and_kept_for_the_next_process(tmp_path: Path) -> None:
    served = Served(tmp_path / "deep" / "a.json", 100)
    served.add([1, 32, 33, 64, 65, 96, 97, 100])
    assert served.counts == (2, 2, 2, 2)
    served.keep(call_tokens=12.5, trial=Trial(3.0, "1x32", "served"))
    again = Served(tmp_path / "deep" / "a.json", 100)
    assert (again.counts, again.call_tokens, again.trial) == ((2, 2, 2, 2), 12.5, Trial(3.0, "1x32", "served"))
    assert (served.fresh, again.fresh) == (8, 0)


def test_several_processes_count_together(tmp_path: Path) -> None:
    one, other = Served(tmp_path / "a.json", 64), Served(tmp_path / "a.json", 64)
    one.add([1] * 3)
    one.keep(call_tokens=7)
    other.add([60] * 5)
    other.keep()
    assert other.counts == (3, 5)
    assert other.call_tokens == 7
    one.keep()
    assert one.counts == (3, 5)


def test_what_is_kept_is_bounded_and_newer_texts_count_for_more(tmp_path: Path) -> None:
    served = Served(tmp_path / "a.json", 64)
    served.add([1] * 900_000)
    served.keep()
    served.add([60] * 200_000)
    served.keep()
    assert served.counts == (450_000, 100_000)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe", b"[]", b"null", b"{}", b'{"counts": [1], "call_tokens": null, "trial": null}',
        b'{"counts": [-1, 2], "call_tokens": null, "trial": null}',
        b'{"counts": [1, 1e400], "call_tokens": null, "trial": null}',
        b'{"counts": [1, 99999999], "call_tokens": null, "trial": null}',
        b'{"counts": [1, "x"], "call_tokens": null, "trial": null}',
        b'{"counts": [1, 2], "call_tokens": {}, "trial": null}',
        b'{"counts": [1, 2], "call_tokens": NaN, "trial": null}',
        b'{"counts": [1, 2], "call_tokens": 1e9, "trial": null}',
        b'{"counts": [1, 2], "call_tokens": null, "trial": 3}',
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_file_of_garbage_counts_as_nothing_and_is_written_anew(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    served = Served(tmp_path / "a.json", 64)
    assert (served.counts, served.call_tokens, served.trial) == ((0, 0), None, None)
    served.add([5])
    served.keep()
    assert Served(tmp_path / "a.json", 64).counts == (1, 0)


def test_nothing_is_lost_where_it_cannot_be_written_down(tmp_path: Path) -> None:
    (tmp_path / "in-the-way").write_text("")
    served = Served(tmp_path / "in-the-way" / "a.json", 64)
    served.add([5, 40])
    with pytest.raises(OSError, match="in-the-way"):
        served.keep()
    assert served.counts == (1, 1)


def test_a_trial_of_the_future_was_made_by_a_wrong_clock(tmp_path: Path) -> None:
    served = Served(tmp_path / "a.json", 64)
    assert not served.tried_within(1e12)
    served.keep(trial=Trial(1e11, "1x32", "served"))
    assert not served.tried_within(1e12)
    served.keep(trial=Trial(1.0, "1x32", "served"))
    assert served.tried_within(1e12)
    assert not served.tried_within(60)


# -- what is found -----------------------------------------------------------------------------------------------------


def test_texts_like_those_that_shapes_were_chosen_for_leave_them() -> None:
    for packed in (False, True):
        assert fit(512, DOCSTRING_LENGTHS, suiting(512, packed=packed), 64) is None


def test_other_texts_get_as_many_shapes_of_their_own_that_save_work() -> None:
    counts = [0] * 8 + [100, 500, 500, 100] + [0] * 4
    before = suiting(512, packed=True)
    found = fit(512, counts, before, 64)
    assert found is not None
    assert len(found.buckets) == len(before)
    assert 0.2 < found.saved < 1
    assert found.texts == 1200
    assert fit(512, counts, found.buckets, 64) is None


@settings(max_examples=25)
@given(st.lists(st.integers(0, 10_000), min_size=8, max_size=8).filter(any), st.floats(0, 1024), st.booleans())
def test_whatever_came_the_longest_text_still_fits_and_what_is_taken_saves_a_tenth(
    counts: list[int], call_tokens: float, packed: bool
) -> None:
    found = fit(256, counts, suiting(256, packed=packed), call_tokens)
    if found is not None:
        assert LEAST_SAVED <= found.saved < 1
        assert max(bucket.length for bucket in found.buckets if not bucket.packed) == 256
        assert any(bucket.packed for bucket in found.buckets) == packed


# -- what is done about it ---------------------------------------------------------------------------------------------


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


# -- the process that converts -----------------------------------------------------------------------------------------


def request_of(folder: Path, cache: Path) -> dict[str, Any]:
    return {
        "folder": str(folder), "model": "bge", "backend": "coreml-emulated", "fingerprint": fingerprint(CONFIG),
        "mode": "none", "cache": str(cache), "buckets": [[1, 40, 1]],
    }  # fmt: skip


def test_a_model_that_was_replaced_since_it_was_loaded_is_not_converted(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="is another one than when it was loaded: restart the worker"):
        converting.convert({**request_of(small_model("bge"), tmp_path), "fingerprint": "0" * 16})
    assert not list(tmp_path.rglob(COREML.file))


def test_the_process_answers_with_the_reason_and_leaves_nothing(tmp_path: Path) -> None:
    request = request_of(tmp_path / "gone", tmp_path / "cache")
    ended = subprocess.run(
        [sys.executable, "-P", "-m", fitter.CONVERTING],
        input=json.dumps(request).encode() + b"\n",
        stdout=subprocess.PIPE,
        check=False,
    )
    # Standard input was closed: it may end at that before it can answer.
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert (ended.returncode, answers) == (1, []) or "gone" in answers[-1]["reason"]
    assert not list(tmp_path.rglob(COREML.file))


def test_a_package_that_loses_too_much_is_not_kept(tmp_path: Path) -> None:
    cache, encoder = PackageCache(COREML, tmp_path), TextEncoder.load(small_model("bge"))
    rows = [text.ids for text in encoder.encode([f"text {number}" for number in range(12)])]
    order = Order("bge", CONFIG, "int8", (Bucket(1, 40),), rows, limit=0.0)
    reference = make_backend("numpy", CONFIG)
    reference.load()
    with pytest.raises(BackendError, match=r"the package loses 0\.\d+%, and 0\.00% is allowed"):
        add_measured(order, EmulatedDevice(), reference, cache)
    assert not list(tmp_path.rglob(COREML.file))
    agreement = add_measured(replace(order, limit=0.01), EmulatedDevice(), reference, cache)
    assert 0 < agreement.loss <= 0.01
    assert cache.preferred(fingerprint(CONFIG)) is None


def test_shapes_are_fitted_unless_a_worker_is_told_to_keep_them() -> None:
    told = WorkerSettings(("redis://localhost",), "embedding", "worker")
    assert engine_config(told).fitting is None
    assert engine_config(replace(told, fit_after_texts=9, fit_look_s=2)).fitting == Fitting(9, 2)


def test_packaged_backends_are_made_by_name_for_another_cache(tmp_path: Path) -> None:
    backend = make_packaged("coreml-emulated", CONFIG, cache=tmp_path, buckets=POOR)
    assert backend.cache.root == tmp_path
