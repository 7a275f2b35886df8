"""The saved package, evaluated in numpy with float16 rounding, makes the vectors of the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from impetus_backends.embedding.devices.coreml import package
from impetus_backends.embedding.devices.coreml.evaluator import SavedFunction, SavedPackage
from impetus_backends.embedding.devices.coreml.form import COREML
from impetus_backends.embedding.devices.coreml.library import coremltools, quietly
from impetus_backends.embedding.devices.coreml.ops import MilOps, Parameters
from impetus_backends.embedding.devices.packages.buckets import Bucket
from impetus_backends.embedding.encoder import pad
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.folder.weights import Weights
from impetus_backends.embedding.modules import PoolingConfig
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_backends.errors import BackendError, BackendUnavailableError, ModelError

from ..conftest import FAMILIES, Recorded, small_model
from .conftest import DEFAULT_BUCKETS, evaluate, size_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from impetus_backends.embedding.devices.backend import EmbeddingBackend
    from impetus_backends.embedding.folder.config import EmbeddingConfig


def least_cosine(vectors: np.ndarray, expected: np.ndarray) -> float:
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((vectors * expected).sum(axis=1) / norms).min())


def cut(rows: list[np.ndarray], length: int) -> list[np.ndarray]:
    """Rows of that many tokens at most, the end marker kept."""
    return [row if len(row) <= length else np.append(row[: length - 1], row[-1]) for row in rows]


@pytest.mark.system
@pytest.mark.parametrize("bucket", DEFAULT_BUCKETS, ids=str)
def test_every_default_bucket_of_minilm_makes_the_vectors_of_the_reference_full_and_nearly_empty(
    bucket: Bucket,
    minilm_saved: SavedPackage,
    minilm_config: EmbeddingConfig,
    minilm_rows: list[np.ndarray],
    minilm_reference: EmbeddingBackend,
) -> None:
    long = cut([row for row in minilm_rows if len(row) >= bucket.length], bucket.length)
    mixed = sorted(cut(minilm_rows, bucket.length), key=len)
    assert all(len(row) == bucket.length for row in long)
    assert len(mixed[0]) <= 3
    # Side by side where there is room for both, for either might spoil the other.
    half = bucket.batch // 2
    batches = [(long * half)[:half] + mixed[: half - 1]] if half else [long[:1], mixed[:1]]
    for rows in batches:
        vectors = evaluate(minilm_saved, minilm_config, bucket, rows)
        assert vectors.dtype == np.float32
        assert least_cosine(vectors, minilm_reference.embed(rows)) >= 0.9999


@pytest.mark.system
def test_six_buckets_share_their_weights(minilm_package: Path, minilm_config: EmbeddingConfig, packages: Path) -> None:
    alone = packages / "one.mlpackage"
    package.build(minilm_config, DEFAULT_BUCKETS[:1], alone)
    assert len(DEFAULT_BUCKETS) == 6
    assert size_of(minilm_package) <= 1.03 * size_of(alone)


@pytest.mark.parametrize("name", ["bge", "e5", "roberta", "distilbert", *FAMILIES])
def test_other_architectures_convert_and_make_the_vectors_of_torch(
    name: str, texts: list[str], recorded: dict[str, Recorded], tmp_path: Path
) -> None:
    config = read_config(small_model(name))
    rows = [text.ids for text in TextEncoder.load(small_model(name)).encode(texts)]
    buckets = (Bucket(len(rows), config.text.max_tokens), Bucket(1, config.text.max_tokens))
    package.build(config, buckets, tmp_path / "model.mlpackage")
    saved = SavedPackage(tmp_path / "model.mlpackage")
    together = evaluate(saved, config, buckets[0], rows)
    alone = evaluate(saved, config, buckets[1], rows[:1])
    assert least_cosine(together, recorded[name].vectors["plain"]) >= 0.9999
    assert least_cosine(alone, recorded[name].vectors["plain"][:1]) >= 0.9999


@pytest.mark.system
def test_the_encoder_is_float16_in_the_layout_of_the_neural_engine(minilm_package: Path) -> None:
    ct = coremltools()
    spec = ct.utils.load_spec(str(minilm_package))
    assert {function.name for function in spec.description.functions} == {bucket.function for bucket in DEFAULT_BUCKETS}
    for bucket in DEFAULT_BUCKETS:
        body = spec.mlProgram.functions[bucket.function]
        operations = body.block_specializations[body.opset].operations
        kinds = [operation.type for operation in operations]
        assert "linear" not in kinds
        assert "matmul" not in kinds
        for operation in operations:
            if operation.type not in ("conv", "layer_norm", "gelu", "softmax", "einsum"):
                continue
            tensor = operation.outputs[0].type.tensorType
            sizes = [dimension.constant.size for dimension in tensor.dimensions]
            assert tensor.dataType == ct.proto.MIL_pb2.FLOAT16
            assert len(sizes) == 4
            assert sizes[0] == bucket.batch
            assert sizes[2] == 1


def test_in_every_function_the_last_axis_is_a_multiple_of_32_until_rows_are_pooled(minilm_package: Path) -> None:
    spec = coremltools().utils.load_spec(str(minilm_package))
    for name, function in spec.mlProgram.functions.items():
        operations = function.block_specializations[function.opset].operations
        computed = [each for each in operations if each.type in ("conv", "layer_norm", "gelu", "softmax", "einsum")]
        *wide, pooled = [each.outputs[0].type.tensorType.dimensions[-1].constant.size for each in computed]
        assert wide, name
        assert all(last >= 32 and last % 32 == 0 for last in wide), name
        assert pooled in {bucket.texts for bucket in DEFAULT_BUCKETS if bucket.function == name}


def test_a_package_names_the_earliest_systems_that_run_it_and_who_wrote_it(minilm_package: Path) -> None:
    about = coremltools().utils.load_spec(str(minilm_package)).description.metadata.userDefined
    assert (about["first_macos"], about["first_ios"]) == ("15", "18")
    assert about["written_by"] == f"impetus-batch, coremltools {coremltools().__version__}"
    assert COREML.needs == "macOS 15 or iOS 18"


def test_no_shape_of_a_package_is_open_and_nothing_in_it_is_bfloat16(minilm_package: Path) -> None:
    ct = coremltools()
    spec = ct.utils.load_spec(str(minilm_package))
    for function in spec.mlProgram.functions.values():
        for operation in function.block_specializations[function.opset].operations:
            for output in operation.outputs:
                assert output.type.tensorType.dataType != ct.proto.MIL_pb2.BFLOAT16, operation.type
                for dimension in output.type.tensorType.dimensions:
                    assert dimension.WhichOneof("dimension") == "constant", operation.type


def saved_function(path: Path, write: Callable[[Any, dict[str, Any]], Any], **shapes: tuple[int, ...]) -> SavedFunction:
    """A package of one small program, written and read again."""
    ct = coremltools()
    from coremltools.converters.mil.mil import Builder, Function, Program, types

    inputs = {name: Builder.placeholder(shape=shape, dtype=types.fp32) for name, shape in shapes.items()}
    with Function(inputs, opset_version=ct.target.macOS15) as function:
        function.set_outputs([Builder.identity(x=write(Builder, function.inputs), name="vectors")])
    program = Program()
    program.add_function("main", function)
    program.export_as_multifunction = True
    with quietly():
        ct.convert(
            program,
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.macOS15,
            pass_pipeline=ct.PassPipeline(pass_names=["common::dead_code_elimination"]),
            skip_model_load=True,
            package_dir=str(path),
        )
    return SavedPackage(path).function("main")


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_pooling_and_scaling_stay_finite_where_sums_leave_float16(mode: str, tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import types

    def write(mb: Any, inputs: dict[str, Any]) -> Any:
        ops = MilOps(Parameters(Weights(small_model("bge"))), mb, types)
        return ops.normalise(ops.pool(mb.cast(x=inputs["x"], dtype="fp16"), inputs["shares"], 0))

    x = np.random.default_rng(1).normal(900, 300, (2, 64, 1, 512)).astype(np.float32)
    rows = [np.full(512, 7, dtype=np.int32), np.full(3, 7, dtype=np.int32)]
    bge = read_config(small_model("bge"))
    long = replace(bge, encoder=replace(bge.encoder, position_rows=512), pooling=PoolingConfig((mode,)))
    shares = pad(long, rows).shares
    run = saved_function(tmp_path / "pool.mlpackage", write, x=x.shape, shares=shares.shape)
    vectors = run({"x": x, "shares": shares})
    expected = x[:, :, 0, 0] if mode == "cls" else np.stack([x[0, :, 0].mean(axis=1), x[1, :, 0, :3].mean(axis=1)])
    assert np.isfinite(vectors).all()
    assert least_cosine(vectors, expected) >= 0.9999
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5


def test_the_evaluator_rounds_to_float16_where_the_file_does_and_overflows_as_a_device_would(tmp_path: Path) -> None:
    def write(mb: Any, inputs: dict[str, Any]) -> Any:
        half = mb.cast(x=inputs["x"], dtype="fp16")
        return mb.cast(x=mb.add(x=half, y=half), dtype="fp32")

    run = saved_function(tmp_path / "half.mlpackage", write, x=(3,))
    doubled = run({"x": np.array([0.1, 40000, 1], dtype=np.float32)})
    assert doubled.tolist() == [float(np.float16(0.1)) * 2, np.inf, 2]


def test_what_the_evaluator_cannot_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"none\.mlpackage is not a Core ML package"):
        SavedPackage(tmp_path / "none.mlpackage")
    with pytest.raises(BackendError, match="does not know the operation atan"):
        saved_function(tmp_path / "atan.mlpackage", lambda mb, inputs: mb.atan(x=inputs["x"]), x=(3,))
    with pytest.raises(BackendError, match="has no function side; it has main"):
        SavedPackage(tmp_path / "atan.mlpackage").function("side")


def test_a_model_that_lacks_a_weight_is_a_model_error_and_leaves_no_package(tmp_path: Path) -> None:
    config = read_config(small_model("bge"))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    broken = replace(config, transformer=tmp_path)
    with pytest.raises(ModelError, match="no tensor"):
        package.build(broken, [Bucket(1, 32)], tmp_path / "model.mlpackage")
    assert not (tmp_path / "model.mlpackage").exists()


@pytest.mark.parametrize(("model", "length"), [("mpnet", 2049), ("qwen3", 4096), ("modernbert", 4096), ("e5", 8193)])
def test_a_package_for_texts_of_a_length_that_would_take_gigabytes_is_refused(
    model: str, length: int, tmp_path: Path
) -> None:
    with pytest.raises(BackendUnavailableError, match=f"reads {length} tokens and a Core ML package of it ends at"):
        package.build(read_config(small_model(model)), [Bucket(1, length)], tmp_path / "model.mlpackage")


def test_whatever_coremltools_raises_makes_the_backend_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("unsupported operation")

    monkeypatch.setattr(coremltools(), "convert", refuse)
    with pytest.raises(BackendUnavailableError, match="could not convert the model: unsupported operation"):
        package.build(read_config(small_model("bge")), [Bucket(1, 32)], tmp_path / "model.mlpackage")
