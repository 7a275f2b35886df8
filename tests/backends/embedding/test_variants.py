"""What a model's files may say otherwise, of its angles above all, is done as transformers does it, or refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from impetus_backends.embedding.devices.coreml import package
from impetus_backends.embedding.devices.coreml.evaluator import SavedPackage
from impetus_backends.embedding.devices.packages.buckets import Bucket
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.folder.weights import fingerprint
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_backends.errors import ModelError
from impetus_backends.models import missing
from tests.recordings import recorded as recordings

from ..conftest import small_model
from ..copies import changed
from ..coreml.conftest import evaluate
from .test_vectors import LEAST_COSINE, TOLERANCE, cosines, loaded

if TYPE_CHECKING:
    from pathlib import Path

RECORDED = recordings("variants")
CASES: dict[str, tuple[str, str, dict[str, Any]]] = json.loads(str(RECORDED["cases"]))
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}


def model_of(case: str, folder: Path) -> Path:
    name, file, keys = CASES[case]
    return changed(small_model(name), folder / "model", file, **keys)


@pytest.mark.parametrize("device", ["cpu", "mlx", "numpy"])
@pytest.mark.parametrize("case", CASES)
def test_variants_make_the_vectors_of_torch(case: str, device: str, texts: list[str], tmp_path: Path) -> None:
    folder, expected = model_of(case, tmp_path), RECORDED[case]
    rows = [text.ids for text in TextEncoder.load(folder).encode(texts)]
    backend = loaded(device, folder)
    assert cosines(backend.embed(rows), expected).min() >= LEAST_COSINE[backend.precision]
    alone = np.concatenate([backend.embed([row]) for row in rows])
    assert np.abs(alone - expected).max() < TOLERANCE[backend.precision]
    model = small_model(CASES[case][0])
    plain = loaded(device, model).embed([text.ids for text in TextEncoder.load(model).encode(texts)])
    assert (cosines(plain, expected).min() < 0.99) == (case != "dynamic"), "the case shows nothing"


@pytest.mark.parametrize("case", ["yarn in full", "yarn by layers", "linear, some layers", "seeing what comes after"])
def test_packages_are_written_as_variants_have_it(case: str, texts: list[str], tmp_path: Path) -> None:
    folder = model_of(case, tmp_path)
    config = read_config(folder)
    rows = [text.ids for text in TextEncoder.load(folder).encode(texts)]
    bucket = Bucket(len(rows), config.text.max_tokens)
    package.build(config, (bucket,), tmp_path / "model.mlpackage")
    vectors = evaluate(SavedPackage(tmp_path / "model.mlpackage"), config, bucket, rows)
    assert cosines(vectors, RECORDED[case]).min() >= 0.9999


def test_angles_that_depend_on_a_texts_length_bound_it(tmp_path: Path) -> None:
    folder = model_of("dynamic", tmp_path)
    assert read_config(folder).text.max_tokens == 40
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 41}')
    with pytest.raises(ModelError, match=r"max_seq_length 41 .* of type dynamic .* state 40 or less"):
        read_config(folder)


@pytest.mark.parametrize(
    ("model", "keys", "reason"),
    [
        ("qwen3", {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "of type 'longrope' are not supported"),
        ("gte", {"rope_scaling": {"type": "ntk", "factor": 8}}, "of type 'ntk' are not supported"),
        ("qwen3", {"rope_parameters": YARN | {"alpha": 2}}, "'yarn' know no alpha, which rope_parameters states"),
        ("qwen3", {"rope_parameters": {"rope_theta": 1e4, "factor": 2.0}}, "'default' know no factor"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}},
            "low_freq_factor is None",
        ),
        ("llama", {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": "2"}}, "factor is '2'"),
        ("llama", {"rope_parameters": YARN | {"factor": None}}, "factor is None"),
        ("llama", {"rope_parameters": YARN | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ("llama", {"rope_parameters": YARN | {"type": "linear"}}, "type 'linear' contradicts rope_type 'yarn'"),
        # Their layers are of two kinds, and these name none of them; transformers reads past what they say.
        ("modernbert", {"rope_parameters": YARN}, "rope_parameters .* of sliding_attention or full_attention"),
        ("gemma", {"rope_scaling": {"type": "linear", "factor": 8.0}}, "type 'linear' contradicts rope_type 'default'"),
        # And here there is one kind alone.
        ("llama", {"rope_parameters": {"full_attention": YARN}}, "know no full_attention"),
        ("qwen3", {"head_dim": 7}, "heads of 7 units"),
        (
            "llama",
            {"rope_parameters": YARN | {"rope_theta": 1.0}},
            r"config\.json states a value .* \(ZeroDivisionError",
        ),
        ("llama", {"rope_parameters": {"rope_theta": 10**400}}, r"config\.json states a value .* \(OverflowError"),
    ],
)
def test_angles_that_would_be_other_ones_are_refused_by_the_key(
    tmp_path: Path, model: str, keys: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        read_config(changed(small_model(model), tmp_path / "model", **keys))


def test_t5s_table_is_read_by_either_name_and_the_encoders_own_comes_first(tmp_path: Path) -> None:
    model, rows = small_model("t5"), [np.array([3, 7, 1], np.int32)]
    stored = load_file(model / "model.safetensors")
    table = stored.pop("shared.weight")
    own = {"encoder.embed_tokens.weight": table}
    for name, tables in (("own", own), ("both", own | {"shared.weight": table[::-1].copy()})):
        folder = shutil.copytree(model, tmp_path / name)
        save_file(stored | tables, folder / "model.safetensors")
        np.testing.assert_array_equal(loaded("numpy", folder).embed(rows), loaded("numpy", model).embed(rows))


def with_norm(folder: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """MPNet with Dropout and LayerNorm for all that is done to its pooled vectors, and what the latter is made of."""
    shutil.copytree(small_model("mpnet"), folder)
    modules = json.loads((folder / "modules.json").read_text())[:2]
    for path, stated in (("2_Dropout", {"dropout": 0.9}), ("3_LayerNorm", {"dimension": 16})):
        modules.append({"path": path, "type": f"sentence_transformers.models.{path[2:]}"})
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(stated))
    (folder / "modules.json").write_text(json.dumps(modules))
    weight, bias = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    save_file({"norm.weight": weight, "norm.bias": bias}, folder / "3_LayerNorm/model.safetensors")
    return folder, weight, bias


@pytest.mark.parametrize("device", ["coreml", "cpu", "mlx", "numpy"])
def test_a_layer_norm_of_pooled_vectors_is_torchs_and_dropout_changes_nothing(device: str, tmp_path: Path) -> None:
    rows = [np.array(row, np.int32) for row in ([3, 7, 1], [3, 1], [3, 9, 7, 20, 1])]
    folder, weight, bias = with_norm(tmp_path / "model")
    config = read_config(folder)
    pooled = loaded("numpy", replace(config, steps=())).embed(rows)
    spread = np.sqrt(pooled.var(axis=1, keepdims=True) + 1e-5)
    expected = (pooled - pooled.mean(axis=1, keepdims=True)) / spread * weight + bias
    if device == "coreml":
        package.build(config, (Bucket(4, 40),), tmp_path / "model.mlpackage")
        found = evaluate(SavedPackage(tmp_path / "model.mlpackage"), config, Bucket(4, 40), rows)
    else:
        found = loaded(device, folder).embed(rows)
    np.testing.assert_allclose(found, expected, atol=0.01 if device == "coreml" else 1e-4)


def test_the_weights_of_a_layer_norm_are_missed_and_decide_vectors(tmp_path: Path) -> None:
    folder, weight, bias = with_norm(tmp_path / "model")
    before, file = fingerprint(read_config(folder)), folder / "3_LayerNorm/model.safetensors"
    assert not missing(folder)
    file.unlink()
    assert [lacking.split()[0] for lacking in missing(folder)] == ["3_LayerNorm/model.safetensors"]
    save_file({"norm.weight": weight, "norm.bias": bias * 2}, file)
    assert fingerprint(read_config(folder)) != before
    (folder / "3_LayerNorm/config.json").write_text('{"dimension": 17}')
    with pytest.raises(ModelError, match="takes vectors of 17, and vectors of 16 come to it"):
        read_config(folder)


def test_a_module_that_is_listed_twice_is_run_twice(tmp_path: Path) -> None:
    folder, rows = shutil.copytree(small_model("mpnet"), tmp_path / "model"), [np.array([3, 7, 1], np.int32)]
    modules = json.loads((folder / "modules.json").read_text())[:2]
    (folder / "modules.json").write_text(json.dumps(modules))
    plain = loaded("numpy", folder).embed(rows)
    dense = modules[0] | {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([*modules, dense, dense]))
    (folder / "2_Dense").mkdir()
    stated = {"in_features": 16, "out_features": 16, "bias": False}
    activation = {"activation_function": "torch.nn.modules.linear.Identity"}
    (folder / "2_Dense/config.json").write_text(json.dumps(stated | activation))
    matrix = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    save_file({"linear.weight": matrix}, folder / "2_Dense/model.safetensors")
    np.testing.assert_allclose(loaded("numpy", folder).embed(rows), plain @ matrix.T @ matrix.T, rtol=1e-5)
