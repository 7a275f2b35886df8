"""The arithmetic underneath: the error function, and reading weights in every form they come in."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from impetus_backends.embedding.config import read_config
from impetus_backends.embedding.reference import erf
from impetus_backends.embedding.weights import Weights, fingerprint, weight_files
from impetus_backends.errors import ModelError

from .conftest import small_model

if TYPE_CHECKING:
    from pathlib import Path


def test_the_error_function_is_exact_to_float32_everywhere() -> None:
    x = np.concatenate([np.linspace(-6, 6, 40_001), [-1e30, -1e-30, 0, 1e-30, 1e30]]).astype(np.float32)
    exact = np.array([math.erf(value) for value in x.tolist()])
    assert np.abs(erf(x) - exact).max() < 5e-7


def write_safetensors(file: Path, dtype: str, data: bytes, shape: list[int]) -> None:
    header = json.dumps({"bert.a.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_weights_of_every_precision_are_read_as_float32(dtype: str, tmp_path: Path) -> None:
    values = np.array([[1.5, -2.0], [0.0, 384.0]], dtype=np.float32)
    formats = {"F32": values, "F16": values.astype("<f2"), "F64": values.astype("<f8")}
    bfloat16 = (values.view(np.uint32) >> 16).astype("<u2")
    write_safetensors(tmp_path / "model.safetensors", dtype, formats.get(dtype, bfloat16).tobytes(), [2, 2])
    read = Weights(tmp_path)["a.weight"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values)


def test_a_broken_weight_file_is_a_model_error_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    for content in (b"", b"\xff" * 64, (4).to_bytes(8, "little") + b"nope"):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=r"model\.safetensors is not a readable"):
            Weights(tmp_path)
    write_safetensors(file, "F32", b"\0" * 8, [2, 2])
    with pytest.raises(ModelError, match=r"model\.safetensors is not a readable"):
        Weights(tmp_path)


def test_weights_in_formats_that_can_run_code_are_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match="can run code"):
        weight_files(tmp_path)


def test_shards_are_found_through_the_index_and_only_in_the_folder(tmp_path: Path) -> None:
    assert len(weight_files(small_model("e5"))) == 2
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(ModelError, match="outside its folder"):
        weight_files(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(ModelError, match=r"shards that are missing: model-1\.safetensors"):
        weight_files(tmp_path)


def test_the_fingerprint_changes_with_all_that_changes_a_vector() -> None:
    config = read_config(small_model("bge"))
    cls = fingerprint(config)
    assert cls == fingerprint(config)
    assert len(cls) == 16
    others = {
        fingerprint(replace(config, pooling=replace(config.pooling, modes=("mean",)))),
        fingerprint(replace(config, text=replace(config.text, max_tokens=8))),
        fingerprint(replace(config, transformer=small_model("distilbert"))),
    }
    assert len(others | {cls}) == 4
