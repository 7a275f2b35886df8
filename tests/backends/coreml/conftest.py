"""One package of MiniLM for all tests: coremltools takes seconds to import and to write it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.coreml import package
from impetus_backends.embedding.devices.coreml.emulated import EmulatedDevice
from impetus_backends.embedding.devices.coreml.evaluator import SavedPackage
from impetus_backends.embedding.devices.coreml.form import COREML
from impetus_backends.embedding.devices.operations import INPUTS
from impetus_backends.embedding.devices.packages.backend import PackagedEmbeddingBackend
from impetus_backends.embedding.devices.packages.buckets import Bucket, Call, choose
from impetus_backends.embedding.devices.packages.cache import PackageCache, Recipe
from impetus_backends.embedding.devices.packages.form import lay
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.folder.weights import fingerprint
from impetus_backends.embedding.texts.tokens import TextEncoder

from ..conftest import small_model
from .doubles import BUCKETS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from impetus_backends.embedding.devices.backend import EmbeddingBackend
    from impetus_backends.embedding.folder.config import EmbeddingConfig

DEFAULT_BUCKETS = choose(256, packed=True)
"""Of a model that reads 256 tokens, as MiniLM does."""


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(scope="session")
def minilm_cache(packages: Path, minilm_config: EmbeddingConfig) -> Path:
    """A cache folder that holds MiniLM as backends convert it by default."""
    folder = packages / "minilm"
    recipe = Recipe(fingerprint(minilm_config), "none", DEFAULT_BUCKETS)
    PackageCache(COREML, folder).add(
        recipe, lambda made: package.build(minilm_config, DEFAULT_BUCKETS, made / COREML.file)
    )
    return folder


@pytest.fixture(scope="session")
def minilm_package(minilm_cache: Path) -> Path:
    (path,) = minilm_cache.glob(f"coreml/*/{COREML.file}")
    return path


@pytest.fixture(scope="session")
def minilm_saved(minilm_package: Path) -> SavedPackage:
    return SavedPackage(minilm_package)


@pytest.fixture(scope="session")
def minilm_reference(minilm_config: EmbeddingConfig) -> EmbeddingBackend:
    """ONNX Runtime, which other tests hold to sentence-transformers: numpy would take minutes."""
    backend = make_backend("cpu", minilm_config, threads=2)
    backend.load()
    return backend


def evaluate(saved: SavedPackage, config: EmbeddingConfig, bucket: Bucket, rows: Sequence[np.ndarray]) -> np.ndarray:
    """The vectors of up to a bucket full of rows, by the function of that bucket."""
    call = Call(bucket, tuple((row,) for row in range(len(rows))))
    batch = lay(config, call, rows)
    inputs = {name: getattr(batch, name) for name in INPUTS}
    return saved.function(bucket.function)(inputs)[call.places]


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


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
