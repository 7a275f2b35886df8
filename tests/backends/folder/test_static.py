"""Models that are a table of tokens' vectors: a text's is their mean, and nothing else."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.engine import open_engine
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.texts.tokens import InputType, TextEncoder
from impetus_backends.errors import ModelError
from impetus_backends.models import resolve

from ..conftest import small_model

if TYPE_CHECKING:
    from pathlib import Path

    from ..conftest import Recorded

STATIC = small_model("static")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(STATIC, tmp_path / "model")


@pytest.mark.parametrize(("input_type", "prompt"), [(None, "plain"), ("query", "query")])
@pytest.mark.parametrize("device", ["numpy", "cpu", "mlx", "coreml-emulated"])
def test_vectors_are_those_of_sentence_transformers_and_a_text_without_tokens_has_none(
    device: str, input_type: InputType, prompt: str, texts: list[str], recorded: dict[str, Recorded]
) -> None:
    encoder = TextEncoder.load(STATIC)
    encoded = encoder.encode(texts, prompt=encoder.prompt(input_type))
    backend = make_backend(device, STATIC)
    backend.load()
    vectors = backend.embed([text.ids for text in encoded])
    whole = [index for index, text in enumerate(encoded) if not text.truncated]
    assert len(whole) == len(texts) - 1
    apart = np.abs(vectors - recorded["static"].vectors[prompt])
    assert apart[whole].max() < (3e-5 if backend.precision == "fp32" else 1e-3)
    assert apart.max() < 1e-3, "of the longest text nearly all is read"
    assert vectors[texts.index("")].any() == bool(prompt == "query")


def test_rows_are_those_of_sentence_transformers_without_special_tokens(
    texts: list[str], recorded: dict[str, Recorded]
) -> None:
    for text, row in zip(TextEncoder.load(STATIC).encode(texts), recorded["static"].rows, strict=True):
        if len(row):
            assert text.ids.tolist() == row[:8192].tolist()


def folded(rows: int, *, kind: type[np.generic] = np.float32, mapped: bool, weighed: bool) -> dict[str, np.ndarray]:
    """A table as model2vec stores one, of as many tokens as the small model has, on so many rows."""
    table, random = load_file(STATIC / "model.safetensors")["embedding.weight"], np.random.default_rng(1)
    stored = {"embeddings": (table[:rows] * 30).astype(kind)}
    if mapped:
        stored["mapping"] = random.integers(0, rows, len(table))
    if weighed:
        stored["weights"] = random.random(len(table)).astype(np.float32)
    return stored


@pytest.mark.parametrize("device", ["numpy", "cpu", "mlx"])
@pytest.mark.parametrize(
    ("rows", "kind", "mapped", "weighed"),
    [
        (240, np.float32, False, False),
        (240, np.float32, False, True),
        (30, np.float32, True, False),
        (30, np.float16, True, True),
        (30, np.int8, True, True),
    ],
)
def test_a_table_of_model2vec_has_a_row_for_each_token(
    folder: Path, device: str, rows: int, kind: type[np.generic], mapped: bool, weighed: bool
) -> None:
    stored = folded(rows, kind=kind, mapped=mapped, weighed=weighed)
    save_file(stored, folder / "model.safetensors")
    backend = make_backend(device, folder)
    backend.load()
    tokens = np.array([7, 9, 239], np.int32)
    places = stored["mapping"][tokens] if mapped else tokens
    shares = stored["weights"][tokens] if weighed else np.ones(3)
    expected = (stored["embeddings"][places].astype(np.float64) * shares[:, None]).mean(axis=0)
    assert np.abs(backend.embed([tokens])[0] - expected / np.linalg.norm(expected)).max() < 1e-6
    assert open_engine(backend, resolve(str(folder))).info.dimensions == 16


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("weights", np.ones(1, np.float32), r"weights are \(1,\), of 240 tokens"),
        ("weights", np.ones((240, 1), np.float32), r"weights are \(240, 1\), of 240 tokens"),
        ("mapping", np.full(240, 30), "a mapping that does not name one of 30 rows"),
        ("mapping", np.full(240, -1), "a mapping that does not name one of 30 rows"),
        ("mapping", np.ones(240, np.float32), "a mapping that does not name one of 30 rows"),
        ("embedding.weight", np.ones((240, 16), np.float32), "mapping beside embedding.weight"),
    ],
)
def test_a_table_of_model2vec_that_does_not_fit_together_is_refused(
    folder: Path, name: str, values: np.ndarray, reason: str
) -> None:
    stored = folded(30, mapped=True, weighed=False) | {name: values}
    if name == "embedding.weight":
        del stored["embeddings"]
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(ModelError, match=reason):
        read_config(folder)


def test_what_the_tokenizers_file_cuts_off_is_cut_off(folder: Path) -> None:
    file = folder / "tokenizer.json"
    cut = {"direction": "Right", "max_length": 6, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"truncation": cut}))
    (text,) = TextEncoder.load(folder).encode(["the quick brown fox jumps over the lazy dog"])
    assert (len(text.ids), text.truncated) == (6, True)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"truncation": cut | {"direction": "Left"}}))
    with pytest.raises(ModelError, match=r"tokenizer\.json: direction 'Left' is not supported"):
        read_config(folder)


def test_an_engine_serves_a_table_through_its_golden_check() -> None:
    info = open_engine(make_backend("cpu", STATIC), resolve(str(STATIC))).info
    assert (info.dimensions, info.max_tokens) == (16, 8192)
