"""Attention by blocks: the vectors of attention made whole, and memory in proportion to the tokens."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from impetus_backends.dispatcher import open_engine
from impetus_backends.embedding.devices import cpu
from impetus_backends.embedding.devices.cpu import CPUEmbeddingBackend
from impetus_backends.embedding.devices.packages.buckets import Bucket, Call
from impetus_backends.embedding.devices.packages.form import lay
from impetus_backends.embedding.devices.reference import SCORES_BYTES, NumpyOps, queries_a_block, scores_bytes
from impetus_backends.embedding.encoder import embed, pad
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.folder.fitting import open_weights
from impetus_backends.embedding.folder.reranker import read_reranker
from impetus_backends.engine_config import EngineConfig
from tests.paths import DATA

from ..conftest import small_model

if TYPE_CHECKING:
    from impetus_backends.embedding.folder.config import EmbeddingConfig

MODELS = ("bge", "camembert", "mpnet", "t5", "modernbert", "qwen3", "gemma", "jina", "static")
"""One of each kind of attention, and one without."""
BOUND_BYTES = 2 * 1024 * 1024
LONG = 2048
MOST_TOKENS = 256
MEGABYTE = 1e6


def lengthened(name: str) -> EmbeddingConfig:
    config = read_config(small_model(name))
    return replace(config, encoder=replace(config.encoder, position_rows=LONG))


def rows_of_lengths(config: EmbeddingConfig, *lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.integers(5, config.encoder.vocab_size, length, dtype=np.int32) for length in lengths]


def apart(vectors: np.ndarray, others: np.ndarray) -> float:
    """How far they are apart at most, of vectors of length 1."""
    return float(np.abs(vectors - others).max() / max(1, np.linalg.norm(others, axis=1).max()))


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_whose_scores_are_too_large_comes_to_what_it_comes_to_whole(name: str) -> None:
    config = read_config(small_model(name))
    whole, parts = CPUEmbeddingBackend(config, threads=1), CPUEmbeddingBackend(config, threads=1, scores_bytes=1)
    padded = rows_of_lengths(config, 40, 3, 39, 17, 1)
    shared = rows_of_lengths(config, *[3, 9, 4, 12, 6, 5, 7, 8, 3, 40, 4, 5, 6, 7, 11, 3, 5, 40])
    for backend in (whole, parts):
        backend.load()
    for rows in (padded, shared, padded[:1]):
        assert apart(parts.embed(rows), whole.embed(rows)) < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_makes_the_same_vectors_by_blocks(name: str) -> None:
    config = read_config(small_model(name))
    weights = open_weights(config)
    rows = rows_of_lengths(config, 40, 3, 39, 17, 1, 6, 6)
    calls = [Call(Bucket(5, 40), tuple((row,) for row in range(5)))]
    if "max" not in config.pooling.modes:
        calls.append(Call(Bucket(3, 48, 4), ((0, 1), (2, 4), (3, 5, 6))))
    for call in calls:
        whole, parts = (embed(NumpyOps(weights, **bound), config, lay(config, call, rows))
                        for bound in ({}, {"scores_bytes": 5_000}))  # fmt: skip
        assert apart(parts, whole) < 1e-6


@given(st.integers(1, 16), st.integers(1, 64), st.integers(1, 8192), st.integers(1, 2**25))
def test_a_block_keeps_to_its_bound_or_is_of_one_query(heads: int, batch: int, length: int, most_bytes: int) -> None:
    block = queries_a_block(heads, batch, length, most_bytes)
    taken = 4 * heads * batch * length
    assert 0 <= block <= length
    assert block * taken <= most_bytes or block == 1
    assert block or taken * length <= most_bytes


@given(st.integers(1, 16), st.integers(1, 64), st.integers(1, 2048), st.integers(1, 2**16))
def test_only_what_is_longer_than_the_most_tokens_of_a_batch_is_made_by_blocks_and_takes_no_more(
    heads: int, batch: int, length: int, most_tokens: int
) -> None:
    bound = scores_bytes(heads, most_tokens)
    block = queries_a_block(heads, batch, length, bound)
    taken = 4 * heads * batch * length
    if taken * length > SCORES_BYTES:
        assert block
    elif batch * length <= most_tokens:
        assert not block
    if block > 1:
        assert block * taken <= max(4 * heads * most_tokens**2, 8 * 2**20)


def test_the_most_tokens_of_a_batch_bound_the_attention_of_a_worker_s_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bounds: set[int] = set()

    def heard(heads: int, batch: int, length: int, most_bytes: int) -> int:
        bounds.add(most_bytes)
        return queries_a_block(heads, batch, length, most_bytes)

    monkeypatch.setattr(cpu, "queries_a_block", heard)
    open_engine(EngineConfig("embedding", str(small_model("bge")), "cpu", most_batch_tokens=1000)).close()
    assert bounds == {4 * 4 * 1000**2}


PEAKS = """
import json, resource, sys
import numpy as np
from impetus_backends.embedding.devices.backends import make_backend
from tests.backends.texts.test_long_texts import LONG, MOST_TOKENS, lengthened, rows_of_lengths

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

grown = {}
for name in sys.argv[1:]:
    config = lengthened(name)
    backend = make_backend("cpu", config, threads=2, most_tokens=MOST_TOKENS)
    backend.load()
    backend.embed(rows_of_lengths(config, 8))
    before = peak()
    vectors = backend.embed(rows_of_lengths(config, LONG))
    assert np.isfinite(vectors).all()
    grown[name] = peak() - before
print(json.dumps(grown))
"""


@pytest.mark.system
def test_a_long_text_takes_a_fraction_of_what_its_scores_would() -> None:
    """Those of 2,048 tokens and four heads are 67 MB, and are needed twice; who sees whom is half as much again."""
    names = ("modernbert", "t5")
    made = subprocess.run([sys.executable, "-c", PEAKS, *names], capture_output=True, text=True, check=True)
    grown = json.loads(made.stdout)
    assert set(grown) == set(names)
    assert max(grown.values()) < 60 * MEGABYTE, grown


def test_the_reference_reads_a_long_text_in_a_fraction_of_what_its_scores_would_take() -> None:
    config = lengthened("modernbert")
    ops = NumpyOps(open_weights(config), scores_bytes=BOUND_BYTES)
    batch = lay(config, Call(Bucket(1, LONG // 2), ((0,),)), rows_of_lengths(config, LONG // 2))
    tracemalloc.start()
    try:
        embed(ops, config, batch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * MEGABYTE  # and 17 are its scores, of which several are held


def test_what_tokens_have_in_common_with_places_comes_to_the_same_by_blocks() -> None:
    config = read_reranker(DATA / "rerankers" / "deberta-v2")
    rows = rows_of_lengths(config, 40, 3, 39, 17, 1, 6, 6)
    whole, parts = CPUEmbeddingBackend(config, threads=1), CPUEmbeddingBackend(config, threads=1, scores_bytes=1)
    for backend in (whole, parts):
        backend.load()
    expected = whole.embed(rows)
    assert apart(parts.embed(rows), expected) < 1e-6
    assert apart(embed(NumpyOps(open_weights(config), scores_bytes=5_000), config, pad(config, rows)), expected) < 1e-5
