"""Every device weighs tokens as sentence-transformers' SparseEncoder and FlagEmbedding do (scripts/recording)."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from impetus_backends.dispatcher import embedding_tokenizer, open_engine
from impetus_backends.embedding.devices import golden
from impetus_backends.embedding.devices.backend import SparseBackend
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.cpu import CPUEmbeddingBackend
from impetus_backends.embedding.devices.mlx import MLXOps
from impetus_backends.embedding.devices.reference import NumpyEmbeddingBackend, NumpyOps
from impetus_backends.embedding.engine import EmbeddingEngine
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.folder.fitting import open_weights
from impetus_backends.embedding.folder.sparse import Splade
from impetus_backends.embedding.folder.weights import fingerprint
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_backends.engine_config import EngineConfig
from impetus_backends.errors import BackendUnavailableError, ModelError
from impetus_backends.protocol import Embedded, EmbeddingWork, Rejected, SparseVector
from tests.backends.copies import changed
from tests.paths import DATA
from tests.recordings import recorded, recorded_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.embedding.folder.weights import Weights

NAMES = ("bert", "bge-m3", "distilbert", "modernbert", "roberta")
DEVICES = ("cpu", "mlx", "numpy")
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}


def folder_of(name: str) -> Path:
    return DATA / "sparse" / name


@cache
def rows_of(name: str, input_type: Any = None) -> list[np.ndarray]:
    texts = recorded_texts()
    encoder = TextEncoder.load(folder_of(name))
    return [text.ids for text in encoder.encode(texts, prompt=encoder.prompt(input_type))]


def loaded(device: str, folder: Path) -> SparseBackend:
    backend = make_backend(device, read_config(folder))
    backend.load()
    assert isinstance(backend, SparseBackend)
    return backend


def spread(vectors: Sequence[SparseVector], like: np.ndarray) -> np.ndarray:
    made = np.zeros_like(like)
    for row, vector in zip(made, vectors, strict=True):
        assert (np.diff(vector.indices) > 0).all()
        assert (vector.values > 0).all()
        row[vector.indices] = vector.values
    return made


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_weights_are_the_recorded_ones_with_strangers_padded_and_alone(name: str, device: str) -> None:
    backend, rows, expected = loaded(device, folder_of(name)), rows_of(name), recorded("sparse")[f"{name}/plain"]
    assert np.abs(spread(backend.weigh(rows), expected) - expected).max() < TOLERANCE[backend.precision]
    for index in range(0, len(rows), 6):
        alone = spread(backend.weigh([rows[index]]), expected[index : index + 1])
        assert np.abs(alone - expected[index]).max() < TOLERANCE[backend.precision]


def by_parts(device: str, config: EmbeddingConfig) -> SparseBackend:
    """A loaded backend that holds the logits of few tokens at a time."""
    backend: Any = CPUEmbeddingBackend(config, scores_bytes=BOUND) if device == "cpu" else make_backend(device, config)
    backend.load()
    if device != "cpu":
        backend._ops = BOUNDED[device](open_weights(config))
    assert isinstance(backend, SparseBackend)
    return backend


BOUND = 27_000
"""Of four texts of 40 tokens and 240 in the vocabulary seven tokens at a time: the last part is not full."""
BOUNDED: dict[str, Callable[[Weights], Any]] = {
    "mlx": lambda weights: MLXOps(weights, mx, mx.float32, scores_bytes=BOUND),
    "numpy": lambda weights: NumpyOps(weights, scores_bytes=BOUND),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("summed", [False, True])
def test_logits_of_some_tokens_at_a_time_come_to_the_weights_of_all_of_them(device: str, *, summed: bool) -> None:
    config = read_config(folder_of("bert"))
    assert isinstance(config.sparse, Splade)
    config = replace(config, sparse=replace(config.sparse, summed=summed))
    whole, random = make_backend("numpy", config), np.random.default_rng(1)
    assert isinstance(whole, NumpyEmbeddingBackend)
    whole.load()
    rows = [random.integers(5, 240, length, dtype=np.int32) for length in (31, 40, 7, 1)]
    like = np.zeros((4, config.encoder.vocab_size), np.float32)
    made, expected = (spread(each.weigh(rows), like) for each in (by_parts(device, config), whole))
    assert np.abs(made - expected).max() < (1e-6 if device == "numpy" else 1e-5) * max(1, expected.max())


@pytest.mark.parametrize("summed", [False, True])
def test_a_cpu_makes_of_parts_of_a_text_what_it_makes_of_the_whole(*, summed: bool) -> None:
    config = read_config(folder_of("modernbert"))
    assert isinstance(config.sparse, Splade)
    config = replace(config, sparse=replace(config.sparse, summed=summed))
    whole, parts = CPUEmbeddingBackend(config, threads=1), CPUEmbeddingBackend(config, threads=1, scores_bytes=1)
    for backend in (whole, parts):
        backend.load()
    rows = [np.random.default_rng(length).integers(5, 240, length, dtype=np.int32) for length in (40, 3, 39)]
    like = np.zeros((3, config.encoder.vocab_size), np.float32)
    one, other = (spread(backend.weigh(rows), like) for backend in (whole, parts))
    assert np.abs(one - other).max() < 1e-6 * max(1, one.max())


def test_parts_of_a_long_text_take_no_more_than_their_bound() -> None:
    """All logits of this one are 67 MB."""
    x, wide = np.ones((1, 4096, 8), np.float32), np.ones((8, 4096), np.float32)
    shares, bound = np.ones((1, 1, 1, 4096), np.float32), 4_000_000
    nothing: Any = None
    ops = NumpyOps(nothing, scores_bytes=bound)
    tracemalloc.start()
    try:
        found = ops.by_parts(x, shares, 4096, lambda part, own: ops.largest(part @ wide, own, 0), summed=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (found == 8).all()
    assert peak < 3 * bound
    on_mlx, weight = MLXOps(nothing, mx, mx.float32, scores_bytes=bound), mx.array(wide)
    mx.eval(weight)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    made = on_mlx.by_parts(
        mx.array(x), mx.array(shares), 4096, lambda part, own: on_mlx.largest(part @ weight, own, 0), summed=False
    )
    assert (np.array(made) == 8).all()
    assert mx.get_peak_memory() - before < 3 * bound


@pytest.mark.parametrize(("tokens", "block"), [(2_000, 0), (2_300, 1_150), (8_192, 2_048)])
def test_a_cpu_makes_logits_by_blocks_where_all_of_them_would_take_more_than_scores_may(
    tokens: int, block: int
) -> None:
    config = read_config(folder_of("bert"))
    encoder = replace(config.encoder, vocab_size=30_522, position_rows=8_192)
    backend = CPUEmbeddingBackend(replace(config, encoder=encoder))
    assert backend._tokens_a_block("sparse", 1, tokens) == block


def test_a_head_takes_anothers_weights_where_it_has_none_of_its_own_or_is_not_to(tmp_path: Path) -> None:
    stored = load_file(folder_of("bert") / "model.safetensors")
    head = "cls.predictions."
    own = {f"{head}decoder.weight": stored["bert.embeddings.word_embeddings.weight"][::-1].copy(),
           f"{head}decoder.bias": stored[f"{head}bias"] + 1}  # fmt: skip

    def made(name: str, tensors: dict[str, np.ndarray], *, tied: bool) -> np.ndarray:
        folder = changed(folder_of("bert"), tmp_path / name, tie_word_embeddings=tied)
        save_file(tensors, folder / "model.safetensors")
        return spread(loaded("numpy", folder).weigh(rows_of("bert")), recorded("sparse")["bert/plain"])

    untied = made("untied", stored | own, tied=False)
    assert not np.allclose(untied, recorded("sparse")["bert/plain"])
    # As transformers since its fifth version: what a file has twice, and not alike, is not tied.
    np.testing.assert_array_equal(made("both", stored | own, tied=True), untied)


def test_recorded_weights_tell_one_text_from_another() -> None:
    for name in NAMES:
        assert np.ptp(recorded("sparse")[f"{name}/plain"], axis=0).max() > 0.3, "else any weights would be near enough"


def test_a_query_has_the_prompt_that_the_models_files_state() -> None:
    made = loaded("numpy", folder_of("bert")).weigh(rows_of("bert", "query"))
    expected = recorded("sparse")["bert/query"]
    assert np.abs(spread(made, expected) - expected).max() < 1e-4


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_with_both_heads_makes_dense_vectors_beside_the_sparse(device: str) -> None:
    engine = open_engine(EngineConfig("embedding", str(folder_of("bge-m3")), device))
    assert engine.info.outputs == ("dense", "sparse")
    rows = [row.ids for row in embedding_tokenizer(engine.info).encode(["the lazy dog", "fox"])]
    engine.admit(EmbeddingWork(1, rows_of("bge-m3")))
    engine.admit(EmbeddingWork(2, rows, output="sparse"))
    dense, sparse = engine.step()[0], engine.step()[0]
    assert isinstance(dense, Embedded)
    assert isinstance(sparse, Embedded)
    assert np.abs(dense.vectors - recorded("sparse")["bge-m3/dense"]).max() < 1e-4
    assert [set(vector.indices) <= set(row) for vector, row in zip(sparse.sparse, rows, strict=True)] == [True, True]


def test_a_model_makes_what_it_has_a_head_for_and_refuses_the_other_in_a_sentence() -> None:
    splade = open_engine(EngineConfig("embedding", str(folder_of("bert")), "numpy"))
    plain = open_engine(EngineConfig("embedding", str(DATA / "models" / "bge"), "numpy"))
    assert (splade.info.outputs, splade.info.dimensions, plain.info.outputs) == (("sparse",), 0, ("dense",))
    assert "golden check passed, least cosine of sparse vectors" in splade.info.reasons[-1]
    row = np.array([2, 5, 3], np.int32)
    for engine, output, sentence in (
        (splade, "dense", "bert makes sparse embeddings alone"),
        (plain, "sparse", "bge has no head for sparse embeddings"),
    ):
        engine.admit(EmbeddingWork(1, [row], output=output))
        assert engine.step() == [Rejected(1, sentence)]


def test_a_head_in_a_pickle_is_named_with_what_converts_it_and_never_read(tmp_path: Path) -> None:
    folder = tmp_path / "m3"
    shutil.copytree(folder_of("bge-m3"), folder)
    (folder / "sparse_linear.safetensors").rename(folder / "sparse_linear.pt")
    engine = open_engine(EngineConfig("embedding", str(folder), "numpy"))
    assert engine.info.outputs == ("dense",)
    assert f"impetus-worker convert --from-torch {folder}" in engine.info.no_sparse
    assert fingerprint(read_config(folder)) != fingerprint(read_config(folder_of("bge-m3")))


def test_core_ml_serves_the_dense_head_alone_and_no_splade_model() -> None:
    with pytest.raises(BackendUnavailableError, match="coreml-emulated makes no sparse embeddings"):
        open_engine(EngineConfig("embedding", str(folder_of("bert")), "coreml-emulated"))
    config = read_config(folder_of("bge-m3"))
    backend = make_backend("coreml-emulated", config)
    assert not isinstance(backend, SparseBackend)


def test_a_device_that_weighs_otherwise_in_a_batch_is_caught_by_the_golden_check() -> None:
    config = read_config(folder_of("bert"))

    class Blind(NumpyEmbeddingBackend):
        name = "blind"

        def weigh(self, rows: Sequence[np.ndarray]) -> list[SparseVector]:
            longest = max(map(len, rows))
            return super().weigh([np.pad(row, (0, longest - len(row)), constant_values=5) for row in rows])

    right, blind = NumpyEmbeddingBackend(config), Blind(config)
    right.load()
    blind.load()
    assert golden.check_sparse(right, config, folder_of("bert")) > 0.9999
    with pytest.raises(BackendUnavailableError, match=r"of sparse vectors, and 0\.9999 is needed"):
        golden.check_sparse(blind, config, folder_of("bert"))


def test_weights_that_are_no_numbers_fail_their_batch_and_not_the_engine() -> None:
    opened = open_engine(EngineConfig("embedding", str(folder_of("bert")), "numpy"))

    class Broken(NumpyEmbeddingBackend):
        def weigh(self, rows: Sequence[np.ndarray]) -> list[SparseVector]:
            return [SparseVector(np.array([7], np.int32), np.array([np.nan], np.float32)) for _ in rows]

    engine = EmbeddingEngine(Broken(read_config(folder_of("bert"))), opened.info)
    engine.admit(EmbeddingWork(1, [np.array([2, 5, 3], np.int32)] * 2, output="sparse"))
    (event,) = engine.step()
    assert isinstance(event, Rejected)
    assert "the vectors of rows [0, 1] are not finite" in event.message


@pytest.mark.parametrize(
    ("name", "file", "keys", "sentence"),
    [
        ("bert", "config.json", {"architectures": ["BertModel"]}, "is of BertModel, and SPLADE's head is that of a"),
        ("bert", "config.json", {"model_type": "electra"}, "SPLADE heads of model_type 'electra' are not supported"),
        ("bert", "config.json", {"tie_word_embeddings": False}, "no tensor cls.predictions.decoder.weight"),
        ("bert", "1_SpladePooling/config.json", {"pooling_strategy": "mean"}, "pooling_strategy 'mean'"),
        ("bert", "1_SpladePooling/config.json", {"activation_function": "gelu"}, "activation_function 'gelu'"),
        ("bert", "1_SpladePooling/config.json", {"embedding_dimension": 7}, "pools 7 tokens of a vocabulary of 240"),
        ("bert", "1_SpladePooling/config.json", {"surprise": 1}, "surprise is not known"),
        ("bert", "config_sentence_transformers.json", {"max_active_dims": 0}, "max_active_dims is 0"),
        ("bert", "config_sentence_transformers.json", {"model_type": "SentenceTransformer"}, "'SentenceTransformer'"),
        ("bert", "sentence_bert_config.json", {"transformer_task": "feature-extraction"}, "transformer_task"),
        # sentence-transformers would pool hidden units.
        ("bert", "sentence_bert_config.json", {"transformer_task": None}, "which it is where none is stated"),
        ("modernbert", "config.json", {"decoder_bias": "no"}, "decoder_bias is 'no', neither true nor false"),
    ],
)
def test_a_model_that_would_weigh_wrongly_is_refused(
    name: str, file: str, keys: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = changed(folder_of(name), tmp_path / "model", file, **keys)
    with pytest.raises(ModelError, match=sentence):
        make_backend("numpy", read_config(folder)).load()


def test_a_head_that_does_not_fit_its_transformer_is_refused_and_so_are_modules_behind_splade(tmp_path: Path) -> None:
    folder = tmp_path / "m3"
    shutil.copytree(folder_of("bge-m3"), folder)
    whole = (folder / "sparse_linear.safetensors").read_bytes()
    (folder / "sparse_linear.safetensors").write_bytes(whole[:-4])
    with pytest.raises(ModelError, match=r"sparse_linear\.safetensors is not a readable safetensors file"):
        make_backend("numpy", read_config(folder)).load()
    modules = json.loads((folder_of("bert") / "modules.json").read_text())
    more = [*modules, {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]
    second = tmp_path / "splade"
    shutil.copytree(folder_of("bert"), second)
    (second / "modules.json").write_text(json.dumps(more))
    with pytest.raises(ModelError, match="or Transformer and SpladePooling alone"):
        read_config(second)
