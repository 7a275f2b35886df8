"""Weights that MLX quantised: the vectors of the same weights made whole, on every backend."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.engine import open_engine
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.folder.fitting import open_weights
from impetus_backends.errors import ModelError
from impetus_backends.models import resolve

from ..conftest import small_model
from .test_model_config import change

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from impetus_backends.embedding.folder.config import EmbeddingConfig

TIMES = 4
"""So much wider is a model here than the recorded one, whose rows are too short to be quantised."""
WIDTHS = ("hidden_size", "intermediate_size", "head_dim")
MODELS = ("bge", "qwen3")


def widened(name: str, folder: Path) -> Path:
    """A seeded model of the same family, with rows of 64 and more."""
    shutil.copytree(small_model(name), folder)
    stated = json.loads((folder / "config.json").read_text())
    kept = {stated[key] for key in ("vocab_size", "max_position_embeddings", "type_vocab_size") if key in stated}
    change(folder / "config.json", **{key: TIMES * stated[key] for key in WIDTHS if key in stated})
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    change(folder / "1_Pooling" / "config.json",
           **{key: TIMES * pooling[key] for key in pooling if key.endswith("embedding_dimension")})  # fmt: skip
    random = np.random.default_rng(5)
    shapes = {name: array.shape for name, array in load_file(folder / "model.safetensors").items()}
    tensors = {}
    for tensor, shape in shapes.items():
        wide = tuple(size if at == 0 and len(shape) == 2 and size in kept else TIMES * size
                     for at, size in enumerate(shape))  # fmt: skip
        tensors[tensor] = random.normal(1 if len(wide) == 1 else 0, 0.2, wide).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    return folder


def quantised(folder: Path, own: dict[str, dict[str, Any]] | None = None, *, bits: int, group_size: int) -> Path:
    """Quantises every matrix of a model as MLX does, `own` otherwise than the others; what MLX makes of them again lies
    beside it, in `whole`."""
    whole = shutil.copytree(folder, folder.parent / "whole")
    stored: dict[str, Any] = {}
    again: dict[str, np.ndarray] = {}
    for name, array in load_file(folder / "model.safetensors").items():
        module = name.removesuffix(".weight")
        packing: dict[str, Any] = {"bits": bits, "group_size": group_size} | (own or {}).get(module, {})
        if array.ndim == 1:
            stored[name], again[name] = mx.array(array), array
            continue
        words, scales, biases = mx.quantize(mx.array(array), **packing)
        scales, biases = scales.astype(mx.bfloat16), biases.astype(mx.bfloat16)
        stored |= {name: words, f"{module}.scales": scales, f"{module}.biases": biases}
        dequantised = mx.dequantize(words, scales.astype(mx.float32), biases.astype(mx.float32), **packing)
        again[name] = np.array(dequantised)
    mx.save_safetensors(str(folder / "model.safetensors"), stored)
    quantization = {"group_size": group_size, "bits": bits, **(own or {})}
    change(folder / "config.json", quantization=quantization, quantization_config=quantization)
    save_file(again, whole / "model.safetensors")
    return whole


def vectors(backend: str, config: EmbeddingConfig, rows: Sequence[np.ndarray]) -> np.ndarray:
    device = make_backend(backend, config)
    device.load()
    return device.embed(rows)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 64), (8, 32)])
@pytest.mark.parametrize("name", MODELS)
def test_the_vectors_are_those_of_the_weights_that_mlx_makes_of_them(
    name: str, bits: int, group_size: int, tmp_path: Path
) -> None:
    folder = widened(name, tmp_path / "model")
    own = "layers.1.mlp.up_proj" if name == "qwen3" else "encoder.layer.1.output.dense"
    whole = read_config(quantised(folder, {own: {"bits": 8, "group_size": 32}}, bits=bits, group_size=group_size))
    config = read_config(folder)
    weights, dequantised = open_weights(config), load_file(whole.transformer / "model.safetensors")
    for tensor, array in dequantised.items():
        assert (weights[tensor] == array).all(), tensor
    random = np.random.default_rng(1)
    rows = [random.integers(5, config.encoder.vocab_size, size, dtype=np.int32) for size in (3, 40, 17, 1)]
    expected = vectors("numpy", whole, rows)
    for backend in ("numpy", "cpu", "mlx"):
        assert np.abs(vectors(backend, config, rows) - expected).max() < 1e-5


def test_a_quantised_model_serves_through_mlx_without_its_weights_being_made_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = widened("qwen3", tmp_path / "model")
    quantised(folder, bits=4, group_size=64)
    engine = open_engine(make_backend("mlx", folder), resolve(str(folder)))
    assert "golden check passed" in engine.info.reasons[-1]

    def never(packed: object) -> np.ndarray:
        raise AssertionError

    monkeypatch.setattr("impetus_backends.embedding.folder.stored.packed.Packed.values", never)
    assert vectors("mlx", read_config(folder), [np.array([7, 8], np.int32)]).shape == (1, 64)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"group_size": 64, "bits": 3}, "'bits': 3} is not supported; supported is MLX's affine, with 2, 4 or 8 bits"),
        ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, "mxfp4"),
        ({"group_size": 32, "bits": 4}, "is not 4 bits in groups of 32"),
        ({"group_size": 64, "bits": 8}, "is not 8 bits in groups of 64"),
        ({}, "does not say how embed_tokens was quantised"),
        ([4], r"quantization \[4\]"),
    ],
)
def test_what_was_quantised_otherwise_or_not_as_stated_is_refused(
    quantization: Any, message: str, tmp_path: Path
) -> None:
    folder = widened("qwen3", tmp_path / "model")
    quantised(folder, bits=4, group_size=64)
    change(folder / "config.json", quantization=quantization, quantization_config=None)
    with pytest.raises(ModelError, match=message):
        open_weights(read_config(folder))
