"""The arithmetic underneath: the error function, and reading weights in every form they come in."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.reference import erf
from impetus_backends.embedding.distances import distance_buckets
from impetus_backends.embedding.encoder import PROMPT, pad
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.folder.fitting import open_weights
from impetus_backends.embedding.folder.stored.tensors import weight_files
from impetus_backends.embedding.folder.weights import Weights, fingerprint
from impetus_backends.embedding.modules import PoolingConfig
from impetus_backends.errors import ModelError

from ..conftest import FAMILIES, small_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("device", ["cpu", "mlx", "numpy"])
def test_of_a_text_that_is_all_prompt_the_largest_have_a_length(device: str) -> None:
    config = replace(read_config(small_model("bge")), pooling=PoolingConfig(("max",), include_prompt=False))
    backend = make_backend(device, config)
    backend.load()
    vectors = backend.embed([np.array([3 + PROMPT, 5 + PROMPT], np.int32), np.array([3 + PROMPT, 5], np.int32)])
    # sentence-transformers makes -1e9 of each unit, and scales it to length 1.
    np.testing.assert_allclose(vectors[0], -0.25, rtol=1e-6)
    assert np.ptp(vectors[1]) > 0


def test_the_error_function_is_exact_to_float32_everywhere() -> None:
    x = np.concatenate([np.linspace(-6, 6, 40_001), [-1e30, -1e-30, 0, 1e-30, 1e30]]).astype(np.float32)
    exact = np.array([math.erf(value) for value in x.tolist()])
    assert np.abs(erf(x) - exact).max() < 5e-7


def test_where_a_prompt_is_all_there_is_to_a_text_its_first_token_is_the_vector_of_cls_and_nothing_the_mean() -> None:
    config = read_config(small_model("bge"))
    rows = [np.array([2, 7, 3], np.int32) + PROMPT, np.array([2 + PROMPT, 7, 3], np.int32)]
    shares = {mode: pad(replace(config, pooling=PoolingConfig((mode,))), rows).shares for mode in ("cls", "mean")}
    assert shares["cls"][:, 0, 0].tolist() == [[1, 0, 0], [0, 1, 0]]
    assert shares["mean"][:, 0, 0].tolist() == [[0, 0, 0], [0, 0.5, 0.5]]


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


def test_weights_in_formats_that_can_run_code_are_not_loaded_and_the_error_says_how_to_convert_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"can run code.* never.*impetus-worker convert --from-torch /"):
        weight_files(tmp_path)
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        weight_files(tmp_path / "empty")


def rewritten(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """A copy of the small BERT whose weights are changed."""
    copy = shutil.copytree(small_model("bge"), folder / "model")
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors")
    return copy


_QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("embeddings.word_embeddings.weight", np.zeros((239, 16), np.float32), "is 239 x 16, and 240 x 16 is needed"),
        ("embeddings.position_embeddings.weight", np.zeros((39, 16), np.float32), "is 39 x 16, and 40 x 16 is needed"),
        (_QUERY, np.zeros((8, 16), np.float32), "is 8 x 16, and 16 x 16 is needed"),
        ("encoder.layer.0.output.dense.weight", np.zeros((16, 31), np.float32), "is 16 x 31, and 16 x 32 is needed"),
        ("embeddings.LayerNorm.bias", np.zeros(1, np.float32), "is 1, and 16 is needed"),
        (_QUERY, np.zeros((16, 16), np.int8), "hold encoder.* as I8, and F64, F32, F16, BF16 are read"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "mlx", "numpy"])
def test_weights_that_do_not_fit_the_configuration_are_told_at_load(
    device: str, name: str, array: np.ndarray, message: str, tmp_path: Path
) -> None:
    folder = rewritten(tmp_path, lambda tensors: tensors.update({name: array}))
    with pytest.raises(ModelError, match=message):
        make_backend(device, folder).load()


def test_every_family_is_held_against_its_weights(tmp_path: Path) -> None:
    for name in (*FAMILIES, "e5", "roberta", "distilbert"):
        config = read_config(small_model(name))
        open_weights(config)
        wider = replace(config.encoder, intermediate_size=33)
        with pytest.raises(ModelError, match=r"do not fit its config\.json: .* is needed"):
            open_weights(replace(config, encoder=wider))


def test_fp8_weights_are_refused_by_name(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", "F8_E4M3", b"\0" * 4, [2, 2])
    with pytest.raises(ModelError, match=r"hold a\.weight as F8_E4M3.* not quantised"):
        Weights(tmp_path)["a.weight"]


def test_shards_are_found_through_the_index_and_only_in_the_folder(tmp_path: Path) -> None:
    assert len(weight_files(small_model("e5"))) == 2
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(ModelError, match="outside its folder"):
        weight_files(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(ModelError, match=r"shards that are missing: model-1\.safetensors"):
        weight_files(tmp_path)


def test_the_fingerprint_is_the_same_in_every_process() -> None:
    program = (
        "import sys, pathlib\n"
        "from impetus_backends.embedding.folder.config import read_config\n"
        "from impetus_backends.embedding.folder.weights import fingerprint\n"
        "print(fingerprint(read_config(pathlib.Path(sys.argv[1]))))"
    )
    found = set()
    for seed in ("1", "2", "3"):
        command = [sys.executable, "-c", program, str(small_model("bge"))]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1


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


@pytest.mark.parametrize(
    "file",
    [
        "model.safetensors.index.json",
        "config.json",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "added_tokens.json",
        "special_tokens_map.json",
        "sentencepiece.bpe.model",
        "config_sentence_transformers.json",
    ],
)
def test_the_fingerprint_covers_every_file_that_is_read(file: str, tmp_path: Path) -> None:
    model = small_model("e5" if file.endswith("index.json") else "gemma")
    folder = shutil.copytree(model, tmp_path / "model")
    config = read_config(folder)
    assert fingerprint(config) == fingerprint(read_config(model))
    before = fingerprint(config)
    with (folder / file).open("ab") as stream:
        stream.write(b" ")
    assert fingerprint(read_config(folder)) != before


def test_buckets_of_distances_are_those_of_mpnet() -> None:
    """As transformers' MPNetEncoder.relative_position_bucket gives them."""
    buckets = distance_buckets(600)
    near = [(7, 23), (8, 24), (11, 24), (12, 25), (15, 25), (16, 26), (31, 27), (32, 28), (63, 29), (64, 30), (91, 31)]
    for distance, bucket in [*near, (600, 31)]:
        assert buckets[600 + distance] == bucket
        assert buckets[600 - distance] == bucket - 16
    assert buckets[600] == 0
