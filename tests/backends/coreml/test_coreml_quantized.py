"""Weights stored smaller, and the gate that keeps what loses too much out of the cache."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from impetus_backends.embedding import docstrings
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.coreml import package
from impetus_backends.embedding.devices.coreml.calibration import ranges
from impetus_backends.embedding.devices.coreml.evaluator import SavedPackage
from impetus_backends.embedding.devices.coreml.form import COREML
from impetus_backends.embedding.devices.coreml.quantize import Int8, Palette, store
from impetus_backends.embedding.devices.packages.accuracy import compare
from impetus_backends.embedding.devices.packages.buckets import Bucket
from impetus_backends.embedding.devices.packages.cache import PackageCache
from impetus_backends.embedding.encoder import embed
from impetus_backends.embedding.folder.config import read_config
from impetus_worker.cli.main import main

from ..conftest import small_model
from .conftest import evaluate, size_of

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.embedding.devices.backend import EmbeddingBackend
    from impetus_backends.embedding.folder.config import EmbeddingConfig

MODEL = str(small_model("bge"))


def test_int8_is_within_half_a_step_of_every_weight_and_of_rows_of_zeros() -> None:
    array = np.random.default_rng(1).normal(0, 1, (40, 64)).astype(np.float32) * np.logspace(-3, 2, 40)[:, None]
    array[7] = 0
    stored = store(array.astype(np.float32), "int8")
    assert isinstance(stored, Int8)
    assert stored.values.dtype == np.int8
    steps = stored.scales.astype(np.float32)
    assert (np.abs(stored.values * steps - array) <= 0.51 * steps).all()
    assert (stored.values[7] == 0).all()


def test_a_palette_of_64_is_near_the_best_there_is_and_exact_for_few_values() -> None:
    array = np.random.default_rng(1).normal(0, 0.04, (256, 384)).astype(np.float32)
    stored = store(array, "palette6")
    assert isinstance(stored, Palette)
    assert stored.indices.max() < 64
    assert stored.table.dtype == np.float16
    # Sixty-four best levels for a normal distribution leave 2.72 / 64^2 of its power (Panter and Dite).
    left = np.square(stored.expand().astype(np.float64) - array).sum() / np.square(array).sum()
    assert left < 1.1 * 2.72 / 64**2
    few = np.random.default_rng(1).choice(np.array([-1, 0, 0.5, 2], dtype=np.float32), (8, 32))
    np.testing.assert_array_equal(store(few, "palette6").expand(), few)


def test_vectors_of_weights_stay_float16_in_every_form() -> None:
    bias = np.array([0.1, -3], dtype=np.float32)
    for mode in ("none", "int8", "palette6"):
        np.testing.assert_array_equal(store(bias, mode).expand(), bias.astype(np.float16))


@pytest.mark.system
@pytest.mark.parametrize(("mode", "share", "least"), [("int8", 0.53, 0.998), ("palette6", 0.40, 0.97)])
def test_minilm_stored_smaller_keeps_its_vectors(
    mode: str,
    share: float,
    least: float,
    minilm_config: EmbeddingConfig,
    minilm_rows: list[np.ndarray],
    minilm_package: Path,
    minilm_reference: EmbeddingBackend,
    packages: Path,
) -> None:
    path, bucket = packages / f"{mode}.mlpackage", Bucket(12, 64)
    package.build(minilm_config, [bucket], path, mode=mode)
    assert size_of(path) < share * size_of(minilm_package)
    rows = sorted((row for row in minilm_rows if len(row) <= 64), key=len)[-12:]
    agreement = compare(evaluate(SavedPackage(path), minilm_config, bucket, rows), minilm_reference.embed(rows))
    assert least <= agreement.least_cosine <= agreement.mean_cosine < 0.9999


def test_the_loss_is_what_vectors_or_a_search_lose() -> None:
    random = np.random.default_rng(1)
    vectors = random.normal(size=(50, 16))
    same = compare(vectors * 3, vectors)
    assert same.least_cosine == pytest.approx(1)
    assert same.top10 == 1
    assert same.loss == pytest.approx(0)
    near = compare(vectors + random.normal(scale=0.05, size=vectors.shape), vectors)
    assert 0 < near.loss < 0.05
    assert near.loss == pytest.approx(max(1 - near.mean_cosine, near.given_away))
    shuffled = compare(random.permutation(vectors), vectors)
    assert shuffled.given_away > 0.5
    assert shuffled.loss > 0.5
    assert compare(np.full((50, 16), np.nan), vectors).loss == 1


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackageCache:
    """The cache that commands of this test use, and few docstrings, for reading the library takes seconds."""
    monkeypatch.setenv("IMPETUS_CACHE_DIR", str(tmp_path / "cache"))
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    texts = [" ".join(words[number % 8 :] + words[: number % 5]) + f" {number}" for number in range(120)]
    found = [docstrings.Docstring(str(number), text) for number, text in enumerate(texts)]
    monkeypatch.setattr(docstrings, "docstrings", lambda: found)
    return PackageCache(COREML, tmp_path / "cache")


def convert(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["convert", MODEL, "--documents", "40", "--buckets", "1x40,16x40", *arguments])


def entries(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"cache/coreml/*/{COREML.file}"))


def test_convert_reports_on_both_packages_and_workers_then_serve_the_one_asked_for(
    cache: PackageCache, tmp_path: Path
) -> None:
    said = convert("--quantize", "int8", "--limit", "5", "--output", str(tmp_path / "out"), "--json")
    assert said.exit_code == 0, said.output
    report: dict[str, Any] = json.loads(said.stdout)
    assert report["buckets"] == ["1x40", "16x40"]
    assert report["device"] == "emulated"
    assert report["a"]["mode"] == "none"
    assert report["a"]["agreement"]["least_cosine"] >= 0.9999
    assert report["b"]["mode"] == "int8"
    assert report["b"]["size_bytes"] < report["a"]["size_bytes"]
    assert 0 < report["loss"] <= 0.05
    assert report["padding"]["in_bulk"] > 0
    assert "measuring B, int8" in said.stderr
    assert "warning: 16x40 costs what the next multiple of 32 does" in said.stderr
    (copy,) = (tmp_path / "out").iterdir()
    stored = json.loads((copy / "report.json").read_text())
    assert stored == {key: value for key, value in report.items() if key != "folder"}
    assert SavedPackage(copy / COREML.file).functions == ("batch1_length40", "batch16_length40")

    backend = make_backend("coreml-emulated", small_model("bge"))
    backend.load()
    assert backend.precision == "int8"
    assert entries(tmp_path)[0].startswith(report["fingerprint"])


def test_beyond_the_limit_nothing_is_kept_or_served_unless_the_loss_is_accepted(
    cache: PackageCache, tmp_path: Path
) -> None:
    refused = convert("--quantize", "palette6", "--limit", "0", "--output", str(tmp_path / "out"))
    assert refused.exit_code == 1
    assert "palette6 loses" in refused.stderr
    assert "nothing was kept" in refused.stderr
    assert "mean cosine" in refused.stdout
    assert not (tmp_path / "out").exists()
    assert [name for name in entries(tmp_path) if "palette6" in name] == []

    accepted = convert("--quantize", "palette6", "--limit", "0", "--accept-loss")
    assert accepted.exit_code == 0, accepted.output
    assert "kept although it loses more than 0.00%" in accepted.stdout
    assert any("palette6" in name for name in entries(tmp_path))
    # What was accepted once is judged again when it is asked for again.
    again = convert("--quantize", "palette6", "--limit", "0")
    assert again.exit_code == 1
    assert [name for name in entries(tmp_path) if "palette6" in name] == []
    backend = make_backend("coreml-emulated", small_model("bge"))
    backend.load()
    assert backend.precision == "fp16"


def test_a_measured_package_whose_vectors_are_broken_is_refused(
    cache: PackageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrongly_activated(ops: Any, config: EmbeddingConfig, inputs: Any) -> Any:
        return embed(ops, replace(config, encoder=replace(config.encoder, activation="tanh")), inputs)

    monkeypatch.setattr("impetus_backends.embedding.devices.coreml.package.embed", wrongly_activated)
    said = convert()
    assert said.exit_code == 1
    assert "none loses" in said.stderr
    assert entries(tmp_path) == []


def test_w8a8_is_calibrated_and_written_here_with_its_products_between_eight_bits(
    cache: PackageCache, tmp_path: Path
) -> None:
    said = convert("--quantize", "w8a8", "--output", str(tmp_path / "out"))
    assert said.exit_code == 0, said.output
    assert "B" in said.stdout
    (written,) = (tmp_path / "out").glob("*-w8a8/*.mlpackage")
    config = read_config(small_model("bge"))
    saved = SavedPackage(written)
    reach = ranges(config, [np.array([101, 7, 12, 102], dtype=np.int32)])
    program = saved._spec.mlProgram
    for function in program.functions.values():
        (block,) = function.block_specializations.values()
        kinds = [operation.type for operation in block.operations]
        assert kinds.count("conv") == len(reach)
        assert 0 < kinds.count("quantize") == kinds.count("dequantize") <= kinds.count("conv")
        made_by = {output.name: operation for operation in block.operations for output in operation.outputs}
        for operation in block.operations:
            if operation.type == "conv":
                (x,) = operation.inputs["x"].arguments
                assert made_by[x.name].type == "dequantize"


def test_ranges_are_what_the_inputs_of_linear_layers_come_to() -> None:
    config = read_config(small_model("bge"))
    one, other = np.array([101, 7, 102], dtype=np.int32), np.array([101, 9, 9, 30, 102], dtype=np.int32)
    each, both = [ranges(config, [row]) for row in (one, other)], ranges(config, [one, other])
    assert both == {name: max(each[0][name], each[1][name]) for name in both}
    assert min(both.values()) > 0


@pytest.mark.parametrize(
    ("lane", "limit", "mode", "refused"),
    [
        ("bulk", "50", "w8a8", []),
        ("bulk", "0.005", "none", ["w8a8"]),
        ("queries", "50", "palette6", []),
        ("queries", "0.005", "none", ["palette6", "int8"]),
    ],
)
def test_auto_takes_the_first_form_of_the_lane_that_loses_little_enough(
    cache: PackageCache, lane: str, limit: str, mode: str, refused: list[str]
) -> None:
    said = convert("--quantize", "auto", "--lane", lane, "--limit", limit)
    assert said.exit_code == 0, said.output
    told = [line.split(":")[0] for line in said.stdout.splitlines() if line.startswith("not ")]
    assert told == [f"not {form}" for form in refused]
    backend = make_backend("coreml-emulated", small_model("bge"))
    backend.load()
    assert backend.precision == ("fp16" if mode == "none" else mode)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--buckets", "1x32"), "add 1x40"),
        (("--buckets", "1x40,8x64"), "lengths are from 1 to 40"),
        (("--buckets", "8x20,1x40"), "8x20 costs what 8x32 does: lengths are multiples of 32, but for the model's"),
        (("--buckets", "1x33,1x40"), "1x33 costs what 1x40 does"),
        (("--buckets", "8-40"), "write 1x32,8x96,1x256"),
        (("--buckets", "0"), "at least one bucket"),
        (("--documents", "100"), "only 120 docstrings, and 164 are needed"),
    ],
)
def test_what_cannot_be_converted_is_refused_before_any_work(
    arguments: tuple[str, ...], reason: str, cache: PackageCache, tmp_path: Path
) -> None:
    said = convert(*arguments)
    assert said.exit_code != 0
    assert reason in said.output
    assert entries(tmp_path) == []
