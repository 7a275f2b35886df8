"""A batch whose rows are divided among the cores of a CPU."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from impetus_backends.embedding.devices import cpu
from impetus_backends.embedding.devices.cpu import CPUEmbeddingBackend, divided
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.machine.cores import equal_cores

from ..conftest import small_model

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.models import ModelFiles

ROWS, LENGTH, CORES = st.integers(1, 300), st.integers(1, 600), st.integers(1, 20)


@given(ROWS, LENGTH, CORES)
def test_each_row_is_some_cores_and_each_core_that_works_alone_has_as_much_as_every_other(
    rows: int, length: int, cores: int
) -> None:
    alone, shared = divided(rows, length, cores)
    assert [row for part in (*alone, shared) for row in range(rows)[part]] == list(range(rows))
    assert len({part.stop - part.start for part in alone}) <= 1
    assert len(alone) in (0, cores)


@given(ROWS, LENGTH, CORES)
def test_no_core_works_alone_on_a_batch_that_is_small_for_so_many(rows: int, length: int, cores: int) -> None:
    alone, _ = divided(rows, length, cores)
    assert all((part.stop - part.start) * length >= 256 for part in alone)
    assert alone or cores == 1 or rows // cores * length < 256


@pytest.mark.parametrize("cores", [2, 3])
@pytest.mark.parametrize("lengths", [[300, 290, 280, 270, 260], [400, *[20] * 30, 280]], ids=["one a row", "shared"])
def test_a_text_has_the_vector_that_it_has_alone_though_cores_divide_its_batch(
    minilm: ModelFiles, lengths: list[int], cores: int
) -> None:
    config = read_config(minilm.folder)
    rows = [np.arange(1000 + length, 1000 + 2 * length, dtype=np.int32) for length in lengths]
    check(CPUEmbeddingBackend(config, threads=cores), CPUEmbeddingBackend(config, threads=1), rows)


@pytest.mark.parametrize("family", ["mpnet", "jina", "ernie", "qwen3"])
def test_so_it_has_in_families_that_are_given_more_than_tokens_and_places(family: str) -> None:
    config = read_config(small_model(family))
    length = min(64, config.text.max_tokens)
    rows = [np.full(length - at, 3 + at, np.int32) for at in range(11)]
    check(CPUEmbeddingBackend(config, threads=2), CPUEmbeddingBackend(config, threads=1), rows)


def test_a_large_model_is_not_held_once_more(minilm: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_MOST_COPIED_BYTES", 2**20)
    backend = CPUEmbeddingBackend(read_config(minilm.folder), threads=2)
    backend.load()
    backend.embed([np.arange(1000, 1300, dtype=np.int32)] * 4)
    assert len(backend._sessions) == 1


def check(dividing: CPUEmbeddingBackend, whole: CPUEmbeddingBackend, rows: list[np.ndarray]) -> None:
    dividing.load()
    whole.load()
    alone = np.concatenate([whole.embed([row]) for row in rows])
    np.testing.assert_allclose(dividing.embed(rows), alone, atol=1e-6)


def test_two_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5}, raising=False)
    for number, siblings in ((0, "0,4"), (1, "1,5"), (2, "2,6"), (5, "1,5")):
        topology = tmp_path / f"cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(siblings + "\n")
    assert equal_cores(tmp_path) == 2
    assert equal_cores(tmp_path / "nothing") == 1
    monkeypatch.setattr(sys, "platform", "darwin")
    assert equal_cores(tmp_path) == 1
