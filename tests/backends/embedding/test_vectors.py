"""Every device makes the vectors of sentence-transformers."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.sharing import round_batch
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.texts.tokens import InputType, TextEncoder
from impetus_backends.errors import BackendUnavailableError, ModelError, RequestError

from ..conftest import FAMILIES, Recorded, small_model

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.embedding.devices.backend import EmbeddingBackend
    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.models import ModelFiles

LEAST_COSINE = {"fp32": 0.9999, "fp16": 0.999}
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-2}
SMALL = ("bge", "e5", "roberta", "distilbert", "nomic-moe", "deberta", *FAMILIES)


def loaded(name: str, model: EmbeddingConfig | Path) -> EmbeddingBackend:
    backend = make_backend(name, model, threads=2) if name == "cpu" else make_backend(name, model)
    backend.load()
    return backend


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: np.ndarray = (a * b).sum(axis=1) / np.maximum(lengths, 1e-12)
    found[~a.any(axis=1) & ~b.any(axis=1)] = 1  # of a text without a token
    return found


def in_mixed_batches(backend: EmbeddingBackend, rows: list[np.ndarray]) -> np.ndarray:
    """The long rows with a short one among them, and the rest: every row is padded, and few are padded far."""
    long = [index for index, row in enumerate(rows) if len(row) > 100]
    batches = [[0, *long], [index for index in range(1, len(rows)) if index not in long]]
    vectors = np.concatenate([backend.embed([rows[index] for index in batch]) for batch in batches])
    ordered: np.ndarray = vectors[np.argsort(np.concatenate(batches))]
    return ordered


@pytest.mark.system
@pytest.mark.parametrize("name", ["cpu", "numpy"])
def test_minilm_vectors_are_those_of_sentence_transformers(
    name: str, minilm_config: EmbeddingConfig, minilm_rows: list[np.ndarray], recorded: dict[str, Recorded]
) -> None:
    vectors = in_mixed_batches(loaded(name, minilm_config), minilm_rows)
    expected = recorded["minilm"].vectors["plain"]
    assert vectors.dtype == np.float32
    assert vectors.shape == expected.shape
    assert cosines(vectors, expected).min() >= 0.9999
    assert np.abs(vectors - expected).max() < 1e-5


@pytest.mark.system
def test_minilm_vectors_through_mlx_are_those_of_sentence_transformers(
    minilm_config: EmbeddingConfig, minilm_rows: list[np.ndarray], recorded: dict[str, Recorded]
) -> None:
    backend = loaded("mlx", minilm_config)
    # Without an Apple GPU MLX makes a few texts a second: of the texts of full length one stands for all.
    by_length = sorted(range(len(minilm_rows)), key=lambda index: len(minilm_rows[index]))
    full = [index for index in by_length if len(minilm_rows[index]) == minilm_config.text.max_tokens]
    chosen = [index for index in by_length if index not in full[1:]]
    for start in range(0, len(chosen), 4):
        part = chosen[start : start + 4]
        vectors = backend.embed([minilm_rows[index] for index in part])
        assert cosines(vectors, recorded["minilm"].vectors["plain"][part]).min() >= LEAST_COSINE[backend.precision]


@pytest.mark.macos
@pytest.mark.skipif(sys.platform != "darwin", reason="needs an Apple GPU")
@pytest.mark.system
def test_all_minilm_vectors_on_an_apple_gpu_are_those_of_sentence_transformers(
    minilm_config: EmbeddingConfig, minilm_rows: list[np.ndarray], recorded: dict[str, Recorded]
) -> None:
    backend = loaded("mlx", minilm_config)
    assert backend.precision == "fp16"
    vectors = in_mixed_batches(backend, minilm_rows)
    assert cosines(vectors, recorded["minilm"].vectors["plain"]).min() >= 0.999


@pytest.mark.parametrize("device", ["cpu", "mlx", "numpy"])
@pytest.mark.parametrize("name", SMALL)
def test_other_architectures_make_the_vectors_of_torch(
    name: str, device: str, texts: list[str], recorded: dict[str, Recorded]
) -> None:
    encoder = TextEncoder.load(small_model(name))
    backend = loaded(device, small_model(name))
    types: dict[str, InputType] = {"plain": None, "query": "query", "document": "document", "passage": "document"}
    for prompt, expected in recorded[name].vectors.items():
        rows = [text.ids for text in encoder.encode(texts, prompt=encoder.prompt(types[prompt]))]
        vectors = backend.embed(rows)
        assert cosines(vectors, expected).min() >= LEAST_COSINE[backend.precision]
        assert np.abs(vectors - expected).max() < TOLERANCE[backend.precision]


@pytest.mark.parametrize("device", ["cpu", "mlx", "numpy"])
@pytest.mark.parametrize("name", SMALL)
def test_neighbours_and_padding_change_no_vector(name: str, device: str, texts: list[str]) -> None:
    rows = [text.ids for text in TextEncoder.load(small_model(name)).encode(texts)]
    backend = loaded(device, small_model(name))
    together = backend.embed(rows)
    alone = np.concatenate([backend.embed([row]) for row in rows])
    assert np.abs(together - alone).max() < TOLERANCE[backend.precision]


@pytest.mark.system
def test_neighbours_and_padding_change_no_minilm_vector(
    minilm_config: EmbeddingConfig, minilm_rows: list[np.ndarray]
) -> None:
    rows = [row for row in minilm_rows if len(row) < 100] + [max(minilm_rows, key=len)]
    backend = loaded("cpu", minilm_config)
    together = backend.embed(rows)
    alone = np.concatenate([backend.embed([row]) for row in rows])
    assert np.abs(together - alone).max() < 1e-5


@pytest.mark.parametrize("device", ["cpu", "mlx", "numpy"])
def test_a_row_that_the_model_cannot_read_is_refused_with_the_reason(device: str) -> None:
    backend = loaded(device, small_model("bge"))
    good = np.array([2, 7, 3], dtype=np.int32)
    with pytest.raises(RequestError, match="outside the vocabulary of 240"):
        backend.embed([good, np.array([2, 240, 3], dtype=np.int32)])
    with pytest.raises(RequestError, match="must be of 1 to 40"):
        backend.embed([good, np.full(41, 7, dtype=np.int32)])
    with pytest.raises(RequestError, match="must be of 1 to 40"):
        backend.embed([good, np.array([], dtype=np.int32)])
    with pytest.raises(RequestError, match="no rows at all"):
        backend.embed([])


def test_mlx_pads_to_few_batch_sizes_and_wastes_less_than_half() -> None:
    sizes = [round_batch(count) for count in range(1, 65)]
    assert sorted(set(sizes)) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    assert all(count <= size < 2 * count for count, size in enumerate(sizes, start=1))


def test_an_unknown_backend_is_refused_by_name(minilm: ModelFiles) -> None:
    with pytest.raises(BackendUnavailableError, match="no embedding backend 'cuda'"):
        make_backend("cuda", minilm.folder)


@pytest.mark.parametrize(("name", "package"), [("cpu", "onnxruntime"), ("mlx", "mlx.core")])
def test_a_missing_package_is_told_by_the_extra_that_brings_it(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendUnavailableError, match=rf"pip install 'impetus-batch\[{name}\]'"):
        make_backend(name, small_model("bge")).load()


def test_a_tensor_that_the_weights_lack_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    config = read_config(small_model("bge"))
    backend = make_backend("numpy", replace(config, transformer=tmp_path))
    with pytest.raises(ModelError, match=r"no tensor embeddings\.word_embeddings\.weight"):
        backend.load()
