"""How large batches are is found out by timing some, and never less than it always was."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from impetus_backends.dispatcher import open_engine
from impetus_backends.embedding.budget import USUAL, is_measured, measure_batches
from impetus_backends.engine_config import EngineConfig

from ..conftest import small_model

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class Timed:
    """A device with a clock of its own: each batch takes what the line says."""

    fixed_s: float
    token_s: float
    name: str = "mlx"
    device: str = "gpu (test)"
    precision: str = "fp16"
    memory_tokens: int = 10**9
    now: float = 0.0
    sizes: list[int] = field(default_factory=list)

    def load(self) -> None: ...

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        tokens = max(map(len, rows)) * len(rows)
        if tokens > self.memory_tokens:
            raise MemoryError
        self.sizes.append(tokens)
        self.now += self.fixed_s + self.token_s * tokens
        return np.zeros((len(rows), 4), np.float32)


def chosen(device: Timed, longest_s: float = 0.2) -> int:
    return measure_batches(device, 100, 512, longest_s, clock=lambda: device.now).chosen


def test_a_device_with_a_high_price_for_each_batch_gets_large_ones() -> None:
    # About an H100's with a BERT-base.
    assert 40_000 < chosen(Timed(fixed_s=0.015, token_s=3e-6)) <= 65_536


def test_no_batch_takes_longer_than_somebody_is_to_wait_behind_it() -> None:
    size = chosen(Timed(fixed_s=0.015, token_s=3e-6), longest_s=0.05)
    assert 9_000 < size <= (0.05 - 0.015) / 3e-6


@pytest.mark.parametrize(("name", "device", "fixed_s"), [("cpu", "cpu", 0.0), ("cpu", "cpu", 5.0), ("mlx", "gpu", 0.0)])
def test_batches_are_never_smaller_than_usual_and_few_are_timed_where_size_brings_nothing(
    name: str, device: str, fixed_s: float
) -> None:
    timed = Timed(fixed_s, 1e-4, name, device)
    assert chosen(timed) == USUAL[name]
    assert max(timed.sizes) == USUAL[name]


def test_what_the_memory_does_not_hold_is_not_chosen() -> None:
    assert chosen(Timed(fixed_s=0.015, token_s=3e-6, memory_tokens=20_000)) <= 16_384


def test_numpy_and_mlx_without_a_gpu_are_not_measured() -> None:
    kinds = [("cpu", "cpu"), ("mlx", "gpu (Apple M4)"), ("mlx", "cpu"), ("numpy", "cpu"), ("coreml", "ane")]
    assert [is_measured(Timed(0, 0, *kind)) for kind in kinds] == [True, True, False, False, False]


def test_an_engine_says_what_was_measured_and_of_an_engine_that_measures_nothing_the_usual_holds() -> None:
    config = EngineConfig("embedding", str(small_model("bge")), "cpu")
    assert open_engine(config).info.batch_tokens == USUAL["cpu"]
    info = open_engine(replace(config, longest_batch_s=0.2)).info
    assert info.batch_tokens >= USUAL["cpu"]
    assert info.measured is not None
    assert f"batches of {info.batch_tokens:,} padded tokens, by measurement at load" in info.measured
