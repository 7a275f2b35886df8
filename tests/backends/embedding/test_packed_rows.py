"""Several texts in one row: each comes to the vector that it comes to alone, on every device."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.coreml import package
from impetus_backends.embedding.devices.coreml.evaluator import SavedPackage
from impetus_backends.embedding.devices.packages.backend import buckets_for
from impetus_backends.embedding.devices.packages.buckets import Bucket, Call, choose, grouped, padding, plan
from impetus_backends.embedding.devices.packages.device import one_by_one
from impetus_backends.embedding.devices.packages.form import lay
from impetus_backends.embedding.devices.packages.runner import Runner
from impetus_backends.embedding.devices.reference import NumpyOps
from impetus_backends.embedding.devices.sharing import rows_of
from impetus_backends.embedding.encoder import embed, packable
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.folder.fitting import open_weights
from impetus_backends.errors import RequestError
from impetus_worker.batches.planning.packing import fill

from ..conftest import FAMILIES, small_model

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.embedding.folder.config import EmbeddingConfig

POOLED_BY_THE_LARGEST = ("camembert", "electra")
MODELS = (
    "bge",
    "nomic-moe",
    "e5",
    "distilbert",
    "roberta",
    *(name for name in FAMILIES if name not in POOLED_BY_THE_LARGEST),
)


def rows_for(config: EmbeddingConfig, *lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.integers(5, config.encoder.vocab_size, length, dtype=np.int32) for length in lengths]


@pytest.mark.parametrize("name", MODELS)
def test_each_text_of_a_shared_row_comes_to_what_it_comes_to_alone(name: str) -> None:
    config = read_config(small_model(name))
    assert packable(config)
    rows = rows_for(config, 5, 17, 1, 30, 8, 8)
    ops = NumpyOps(open_weights(config))
    call = Call(Bucket(3, 48, 4), ((3, 1), (4, 5, 0, 2)))
    made = embed(ops, config, lay(config, call, rows))
    assert made.shape == (12, config.dimensions)
    alone = np.concatenate([embed(ops, config, lay(config, Call(Bucket(1, 40), ((at,),)), rows)) for at in call.rows])
    assert np.abs(made[call.places] - alone).max() < 1e-5


@pytest.mark.parametrize("name", POOLED_BY_THE_LARGEST)
def test_rows_of_models_that_take_the_largest_of_tokens_hold_one_text_each(name: str) -> None:
    config = read_config(small_model(name))
    assert not packable(config)
    assert not any(bucket.packed for bucket in buckets_for(config))
    assert not rows_of(config, [3] * 32).bucket.packed


@pytest.mark.parametrize("name", ["bge", "roberta", "mpnet", "qwen3"])
def test_the_functions_of_a_core_ml_package_for_shared_rows_change_no_vector(name: str, tmp_path: Path) -> None:
    config = read_config(small_model(name))
    shared = Bucket(2, 64, 4)
    package.build(config, [Bucket(1, 40), shared], tmp_path / "model.mlpackage")
    saved = SavedPackage(tmp_path / "model.mlpackage")
    runner = Runner(config, {bucket: one_by_one(saved.function(bucket.function)) for bucket in (Bucket(1, 40), shared)})
    rows = rows_for(config, 5, 17, 1, 30, 8, 8, 3)
    together = runner.embed(rows)
    assert runner.timings[shared].rows == len(rows)
    alone = np.concatenate([runner.embed([row]) for row in rows])
    assert runner.timings[Bucket(1, 40)].rows == len(rows)
    lengths = np.linalg.norm(together, axis=1) * np.linalg.norm(alone, axis=1)
    assert ((together * alone).sum(axis=1) / lengths).min() >= 0.9999


def test_a_long_text_comes_to_its_vector_in_the_shortest_function_that_takes_it(tmp_path: Path) -> None:
    config = read_config(small_model("gte"))
    config = replace(config, encoder=replace(config.encoder, position_rows=2048),
                     text=replace(config.text, max_tokens=2048))  # fmt: skip
    beyond = [bucket for bucket in buckets_for(config) if bucket.length > 512]
    assert beyond == [Bucket(1, 1024), Bucket(1, 2048)]
    package.build(config, beyond, tmp_path / "model.mlpackage")
    saved = SavedPackage(tmp_path / "model.mlpackage")
    runner = Runner(config, {bucket: one_by_one(saved.function(bucket.function)) for bucket in beyond})
    rows = rows_for(config, 600)
    made = runner.embed(rows)[0]
    assert {bucket.length: timing.calls for bucket, timing in runner.timings.items()} == {1024: 1, 2048: 0}
    (expected,) = embed(NumpyOps(open_weights(config)), config, lay(config, Call(Bucket(1, 600), ((0,),)), rows))
    assert made @ expected / np.linalg.norm(made) / np.linalg.norm(expected) >= 0.9999


@pytest.mark.parametrize("backend", ["cpu", "mlx"])
@pytest.mark.parametrize("name", ["bge", "roberta", "mpnet", "modernbert", "qwen3"])
def test_a_device_of_any_shape_packs_where_that_saves_work_and_changes_no_vector(name: str, backend: str) -> None:
    config = read_config(small_model(name))
    device = make_backend(backend, config)
    device.load()
    rows = rows_for(config, *[3, 9, 4, 12, 6, 5, 7, 8, 3, 40, 4, 5, 6, 7, 11, 3, 5, 40])
    call = rows_of(config, [len(row) for row in rows])
    assert call.bucket.packed
    assert call.bucket.tokens < 16 * 48
    together = device.embed(rows)
    alone = np.concatenate([device.embed([row]) for row in rows])
    assert np.abs(together - alone).max() < 1e-5


def test_rows_are_padded_where_sharing_saves_too_little_or_may_not_be() -> None:
    config = read_config(small_model("bge"))
    assert rows_of(config, [30, 31, 32, 30, 30, 31, 32, 32]).bucket == Bucket(8, 32)
    assert rows_of(config, [3, 40]).bucket == Bucket(2, 40)
    assert rows_of(config, [40, *[3] * 16], stepped=False).bucket.packed
    with pytest.raises(RequestError, match="no rows at all"):
        lay(config, rows_of(config, []), [])
    long = rows_for(config, 3, 3, 3, 3, 41)
    with pytest.raises(RequestError, match="each row must be of 1 to 40"):
        lay(config, rows_of(config, list(map(len, long))), long)


@given(st.lists(st.integers(1, 64), max_size=60), st.integers(2, 9))
def test_groups_hold_every_row_once_and_never_too_many(lengths: list[int], texts: int) -> None:
    groups = grouped(lengths, 64, texts)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert all(1 <= len(group) <= texts and sum(lengths[row] for row in group) <= 64 for group in groups)


@given(st.lists(st.integers(1, 256), max_size=60))
def test_a_plan_with_shared_rows_takes_every_text_once_and_costs_no_more_than_one_without(lengths: list[int]) -> None:
    alone = (Bucket(1, 32), Bucket(1, 64), Bucket(4, 64), Bucket(1, 256))
    buckets = (*alone, Bucket(1, 128, 16), Bucket(4, 128, 16))
    calls = plan(lengths, buckets)
    assert sorted(row for call in calls for row in call.rows) == list(range(len(lengths)))
    for call in calls:
        assert len(call.groups) <= call.bucket.batch
        assert all(len(group) <= call.bucket.texts for group in call.groups)
        assert all(sum(lengths[row] for row in group) <= call.bucket.length for group in call.groups)
    assert sum(call.bucket.cost for call in calls) <= sum(call.bucket.cost for call in plan(lengths, alone))


def test_measured_costs_decide_whether_rows_are_shared() -> None:
    padded, shared = Bucket(8, 32), Bucket(1, 128, 16)
    longest = Bucket(1, 128)
    lengths = [16] * 8
    cheap = {padded: 9.0, shared: 1.0, longest: 9.0}
    dear = {padded: 1.0, shared: 9.0, longest: 9.0}
    assert [call.bucket for call in plan(lengths, (padded, shared, longest), cheap)] == [shared]
    assert [call.bucket for call in plan(lengths, (padded, shared, longest), dear)] == [padded]


def test_docstrings_of_mixed_length_waste_less_than_a_tenth_where_rows_are_shared() -> None:
    # Lengths spread as in the library's docstrings, in no order.
    random = np.random.default_rng(5)
    lengths = random.choice([8, 14, 22, 30, 45, 70, 120, 256], 2000, p=[0.1, 0.2, 0.15, 0.1, 0.2, 0.1, 0.1, 0.05])
    texts = list(map(int, lengths))
    assert padding(texts, choose(256)).in_bulk > 0.3
    assert padding(texts, choose(256, packed=True)).in_bulk < 0.1


def test_a_batch_for_shared_rows_is_filled_with_texts_in_their_order() -> None:
    assert fill([5, 30, 2, 64, 90, 1], int, max_tokens=64, max_rows=8) == [[5, 30, 2], [64], [90], [1]]
    assert fill([1, 1, 1], int, max_tokens=64, max_rows=2) == [[1, 1], [1]]
    assert fill([], int, max_tokens=64, max_rows=2) == []
