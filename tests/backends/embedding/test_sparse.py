"""Every device weighs tokens as sentence-transformers' SparseEncoder and FlagEmbedding do (scripts/recording)."""

from __future__ import annotations

import json
import shutil
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from impetus_backends.dispatcher import embedding_tokenizer, open_engine
from impetus_backends.embedding.devices import golden
from impetus_backends.embedding.devices.backend import SparseBackend
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.reference import NumpyEmbeddingBackend
from impetus_backends.embedding.engine import EmbeddingEngine
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.folder.weights import fingerprint
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_backends.engine_config import EngineConfig
from impetus_backends.errors import BackendUnavailableError, ModelError
from impetus_backends.protocol import Embedded, EmbeddingWork, Rejected, SparseVector
from tests.backends.copies import changed
from tests.paths import DATA
from tests.recordings import recorded, recorded_texts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

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
