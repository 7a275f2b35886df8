"""Core AI assets, authored here and run by Apple's runtime: every family, both precisions, and what goes wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from impetus_backends import dispatcher
from impetus_backends.candidates import Means
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.coreai import library
from impetus_backends.embedding.devices.coreai.device import CoreAIDevice
from impetus_backends.embedding.devices.coreai.form import COREAI
from impetus_backends.embedding.devices.packages.buckets import Bucket
from impetus_backends.embedding.devices.packages.cache import PackageCache, Recipe
from impetus_backends.embedding.devices.packages.convert import AccuracyError, Order, convert
from impetus_backends.embedding.encoder import packable
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_backends.engine_config import EngineConfig
from impetus_backends.errors import BackendUnavailableError
from impetus_backends.machine.measurements import MeasurementCache
from impetus_worker.cli.main import main

from ...worker.conftest import fleet  # noqa: F401 - a fixture
from ..conftest import FAMILIES, small_model
from ..end_to_end import embedded_by_a_worker
from ..machine.machines import machine
from .conftest import backend_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from impetus_backends.embedding.devices.backend import EmbeddingBackend
    from impetus_backends.embedding.folder.config import EmbeddingConfig

    from ...worker.conftest import Fleet

BUCKETS = (Bucket(1, 32), Bucket(4, 32), Bucket(2, 16))


def rows_of(name: str, texts: list[str], longest: int = 32) -> list[np.ndarray]:
    return [text.ids[:longest] for text in TextEncoder.load(small_model(name)).encode(texts)]


def cosines(vectors: np.ndarray, expected: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    found: np.ndarray = (vectors * expected).sum(axis=1) / lengths
    return found


@pytest.mark.parametrize("name", ["bge", "e5", "distilbert", "roberta", *FAMILIES])
def test_every_family_and_bucket_agrees_with_the_reference_in_both_precisions(name: str, tmp_path: Path) -> None:
    config = read_config(small_model(name))
    random = np.random.default_rng(4)
    lengths = (20, 30, 31, 32, 5, 9, 6, 7, 8, 5, 6, 7, 8, 3)
    rows = [random.integers(5, config.encoder.vocab_size, length, dtype=np.int32) for length in lengths]
    reference = make_backend("numpy", config)
    reference.load()
    expected = np.concatenate([reference.embed([row]) for row in rows])
    shared = [Bucket(2, 64, 4)] if packable(config) else []
    full = backend_of(config, tmp_path, *BUCKETS, *shared)
    full.load()
    assert (full.device, full.precision) == ("cpu", "fp32")
    for chosen in (slice(0, 1), slice(1, 4), slice(4, 6), slice(6, 14)):
        vectors = full.embed(rows[chosen])
        assert cosines(vectors, expected[chosen]).min() >= 0.999999
        assert np.abs(vectors - expected[chosen]).max() < 1e-5
    assert all(timing.calls for timing in full.timings.values())
    half = backend_of(config, tmp_path, Bucket(1, 32), *shared, mode="none")
    half.load()
    assert half.precision == "fp16"
    assert cosines(half.embed(rows[6:14]), expected[6:14]).min() >= 0.9999


@pytest.fixture(scope="module")
def config() -> EmbeddingConfig:
    return read_config(small_model("bge"))


@pytest.fixture
def authored(config: EmbeddingConfig, tmp_path: Path) -> Path:
    """The asset of the small model, in a cache of its own."""
    backend_of(config, tmp_path, Bucket(1, 40)).load()
    (asset,) = tmp_path.glob(f"coreai/*/{COREAI.file}")
    return asset


def test_an_asset_says_what_it_needs_and_functions_share_its_weights(
    config: EmbeddingConfig, authored: Path, tmp_path: Path
) -> None:
    about = json.loads((authored / "metadata.json").read_text())
    assert about["creatorDefinedMetadata"]["first_macos"] == about["creatorDefinedMetadata"]["first_ios"] == 27
    assert COREAI.needs == "macOS 27 or iOS 27"
    more = tmp_path / "more"
    backend_of(config, more, Bucket(1, 40), Bucket(8, 40)).load()
    (asset,) = more.glob(f"coreai/*/{COREAI.file}")
    table = config.encoder.vocab_size * config.encoder.hidden_size * 4
    sizes = [(each / "main.mlirb").stat().st_size for each in (authored, asset)]
    assert sizes[1] - sizes[0] < table


def test_an_asset_is_authored_once_and_again_for_another_version_of_the_library(
    config: EmbeddingConfig, authored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = (authored / "main.mlirb").stat().st_mtime_ns
    backend_of(config, tmp_path, Bucket(1, 40)).load()
    assert (authored / "main.mlirb").stat().st_mtime_ns == written
    cache = PackageCache(COREAI, tmp_path)
    recipe = Recipe("0" * 16, "fp32", (Bucket(1, 40),))
    before = cache.name(recipe)
    monkeypatch.setattr("importlib.metadata.version", lambda package: "1.0.0b4")
    assert cache.name(recipe) != before
    with pytest.raises(BackendUnavailableError, match=r"1.0.0b4 is installed, and assets were tested with 1.0.0b3"):
        library.coreai()


def cut_short(asset: Path) -> None:
    program = asset / "main.mlirb"
    program.write_bytes(program.read_bytes()[:-1000])


def flipped(asset: Path) -> None:
    program = bytearray((asset / "main.mlirb").read_bytes())
    program[len(program) // 2] ^= 1
    (asset / "main.mlirb").write_bytes(bytes(program))


def gone(asset: Path) -> None:
    (asset / "main.mlirb").unlink()


def older(asset: Path) -> None:
    about = json.loads((asset / "metadata.json").read_text())
    (asset / "metadata.json").write_text(json.dumps({**about, "producer": "coreai-core 1.0.0b2"}))


def no_metadata(asset: Path) -> None:
    (asset / "metadata.json").write_text("[]")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (cut_short, "is damaged: remove its folder, and it is made again"),
        (flipped, "is damaged"),
        (gone, "is no Core AI asset that can be read"),
        (older, "was written by coreai-core 1.0.0b2, and coreai-core 1.0.0b3 is installed"),
        (no_metadata, "is no Core AI asset that can be read"),
    ],
)
def test_a_damaged_or_older_asset_makes_way_for_the_next_backend_with_the_reason(
    change: Callable[[Path], None],
    reason: str,
    config: EmbeddingConfig,
    authored: Path,
    tmp_path: Path,
) -> None:
    change(authored)

    def make(name: str, config: EmbeddingConfig) -> EmbeddingBackend:
        if name == "coreai":
            return backend_of(config, tmp_path, Bucket(1, 40))
        if name == "numpy":
            return make_backend(name, config)
        raise BackendUnavailableError("not of this test")

    asked = EngineConfig("embedding", str(small_model("bge")))
    means = Means(MeasurementCache(tmp_path / "measurements"), make, lambda name: None)
    engine = dispatcher.open_embedding(asked, machine("m6"), means)
    assert engine.info.backend == "numpy"
    assert any(each.startswith("coreai: ") and reason in each for each in engine.info.reasons), engine.info.reasons


def test_a_form_is_measured_before_it_is_kept_and_refused_where_it_loses_too_much(
    config: EmbeddingConfig, texts: list[str], tmp_path: Path
) -> None:
    cache = PackageCache(COREAI, tmp_path)
    reference = make_backend("numpy", config)
    reference.load()
    rows = rows_of("bge", texts)[:12]
    order = Order("bge", config, "none", (Bucket(2, 40),), rows, limit=0.0)
    with pytest.raises(AccuracyError, match=r"none loses 0\.00% and 0\.00% is allowed"):
        convert(order, CoreAIDevice(), reference, cache)
    assert not list(tmp_path.glob(f"coreai/*/{COREAI.file}"))
    entry, report = convert(replace(order, limit=0.01), CoreAIDevice(), reference, cache)
    assert cache.package(entry).is_dir()
    assert (report.device, report.passed) == ("cpu", True)
    assert report.b.agreement.least_cosine >= 0.9999
    # And workers serve the model with it from then on.
    preferred = backend_of(config, tmp_path)
    preferred.load()
    assert preferred.precision == "fp16"


def test_convert_refuses_forms_that_core_ai_has_not() -> None:
    model = str(small_model("bge"))
    result = CliRunner().invoke(main, ["convert", model, "--for", "coreai", "--quantize", "int8"])
    assert result.exit_code == 1
    assert "a Core AI package has no int8; it has none, fp32" in result.output


@pytest.mark.system
def test_a_worker_serves_jobs_through_core_ai_from_end_to_end(
    fleet: Fleet,  # noqa: F811
    texts: list[str],
    config: EmbeddingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = embedded_by_a_worker(fleet, "coreai", texts, tmp_path, monkeypatch)
    reference = make_backend("numpy", config)
    reference.load()
    assert cosines(np.asarray(result.vectors), reference.embed(rows_of("bge", texts, 40))).min() >= 0.9999
    assert (result.provenance.backend, result.provenance.device) == ("coreai", "cpu")
    assert "Apple's Core AI runtime on a CPU" in str(result.provenance.note)
    assert len(list((tmp_path / "impetus" / "coreai").glob(f"*/{COREAI.file}"))) == 1


def test_two_calls_at_once_come_to_what_each_comes_to_alone(tmp_path: Path) -> None:
    config = read_config(small_model("bge"))
    backend = backend_of(config, tmp_path, Bucket(1, 32), Bucket(2, 40))
    backend.load()
    random = np.random.default_rng(5)
    rows = [random.integers(5, config.encoder.vocab_size, size, dtype=np.int32) for size in (9, 30, 3, 12, 25, 7, 18)]
    together = backend.embed(rows)
    assert sum(timing.calls for timing in backend.timings.values()) >= 4
    np.testing.assert_allclose(together, np.concatenate([backend.embed([row]) for row in rows]), atol=1e-5)


def test_a_disk_without_room_is_told_before_the_library_ends_the_process_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 * 2**20))
    with pytest.raises(BackendUnavailableError, match=r"the disk is too full: .* 16 MiB in .*, and 3 MiB are free"):
        backend_of(read_config(small_model("bge")), tmp_path, Bucket(1, 32)).load()
    assert not list(tmp_path.rglob("*.aimodel"))
