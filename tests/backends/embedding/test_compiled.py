"""The MLX backend runs a model compiled where that was measured to pay, and for shapes that come again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.compiled import Compiled
from impetus_backends.embedding.devices.mlx import MLXEmbeddingBackend

from ..conftest import small_model

if TYPE_CHECKING:
    from collections.abc import Callable


class Device:
    """Runs a function of arrays, plain and compiled; what a run takes moves its clock."""

    def __init__(self, plain_s: float, compiled_s: float) -> None:
        self.now, self.ran = 0.0, ""
        self._plain_s, self._compiled_s = plain_s, compiled_s

    def clock(self) -> float:
        return self.now

    def plain(self, *arrays: np.ndarray) -> np.ndarray:
        self.now += self._plain_s
        self.ran += "p"
        return arrays[0] * 2

    def compiler(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def compiled(*arrays: np.ndarray) -> np.ndarray:
            self.now += self._compiled_s
            self.ran += "c"
            return arrays[0] * 2

        return compiled


class RunningFaster:
    """A clock by which every run takes less time than the one before."""

    def __init__(self) -> None:
        self._asked, self._now = 0, 0.0

    def clock(self) -> float:
        self._asked += 1
        self._now += 1 / self._asked
        return self._now


def vectors(rows: int) -> list[np.ndarray]:
    return [np.arange(1, 1 + 4 * rows, dtype=np.float32).reshape(rows, 4)]


def runs(compiled: Compiled, device: Device, rows: int, times: int) -> str:
    device.ran = ""
    for _ in range(times):
        compiled(vectors(rows))
    return device.ran


def test_a_shape_is_timed_both_ways_in_passing_and_then_served_the_faster() -> None:
    device = Device(plain_s=2.0, compiled_s=1.0)
    compiled = Compiled(device.plain, device.compiler, device.clock)
    assert runs(compiled, device, 8, 10) == "ppp" + "pc" + "cc" + "cccc"
    assert runs(compiled, device, 16, 3) == "ppp"
    assert runs(compiled, device, 8, 1) == "c"


def test_a_shape_that_is_no_faster_compiled_runs_as_it_is() -> None:
    device = Device(plain_s=1.0, compiled_s=0.99)
    assert runs(Compiled(device.plain, device.compiler, device.clock), device, 8, 9) == "ppp" + "pc" + "cc" + "ppp"


@pytest.mark.parametrize("wrong", [lambda x: x[:, ::-1], lambda x: x * np.nan])
def test_what_comes_to_other_vectors_never_serves(wrong: Callable[[np.ndarray], np.ndarray]) -> None:
    device = Device(plain_s=2.0, compiled_s=1.0)
    other = device.compiler(device.plain)
    compiled = Compiled(device.plain, lambda _: lambda *arrays: wrong(other(*arrays)), device.clock)
    assert runs(compiled, device, 8, 9) == "ppp" + "pc" + "ppppp"
    np.testing.assert_array_equal(compiled(vectors(8)), vectors(8)[0] * 2)


def test_vectors_of_places_without_a_text_are_no_reason_not_to_compile() -> None:
    device = Device(plain_s=2.0, compiled_s=1.0)
    compiled = Compiled(device.plain, device.compiler, device.clock)
    for _ in range(7):
        device.ran = ""
        compiled([np.vstack([vectors(3)[0], np.zeros((1, 4), np.float32)])])
    assert device.ran == "c"


def test_a_compiler_that_fails_is_done_without() -> None:
    def failing(*arrays: np.ndarray) -> np.ndarray:
        raise ValueError("[compile] no such primitive")

    device = Device(plain_s=2.0, compiled_s=1.0)
    assert runs(Compiled(device.plain, lambda _: failing, device.clock), device, 8, 8) == "pppppppp"


def test_what_a_model_cannot_do_is_raised_as_ever() -> None:
    def failing(*arrays: np.ndarray) -> np.ndarray:
        raise ValueError("no more memory")

    device = Device(plain_s=2.0, compiled_s=1.0)
    with pytest.raises(ValueError, match="memory"):
        Compiled(failing, device.compiler, device.clock)(vectors(8))


def test_only_so_many_shapes_are_compiled() -> None:
    device = Device(plain_s=2.0, compiled_s=1.0)
    compiled = Compiled(device.plain, device.compiler, device.clock)
    assert "".join(runs(compiled, device, rows, 1) for rows in range(1, 257)) == "p" * 256
    assert runs(compiled, device, 300, 9) == "p" * 9
    assert runs(compiled, device, 7, 8).endswith("cc")


@pytest.mark.parametrize("name", ["bge", "modernbert", "gemma"])
def test_a_compiled_model_makes_the_vectors_of_the_model(name: str) -> None:
    backend = make_backend("mlx", small_model(name))
    assert isinstance(backend, MLXEmbeddingBackend)
    backend.load()
    random = np.random.default_rng(1)
    rows = [random.integers(5, 100, length, dtype=np.int32) for length in (10, 24, 30, 16)]
    alone = backend.embed(rows)
    compiled = Compiled(backend.function(packed=False), mx.compile, RunningFaster().clock)
    backend.run_by[False] = compiled
    for made in [backend.embed(rows) for _ in range(7)]:
        np.testing.assert_allclose(made, alone, atol=2e-6)


def test_a_gpu_that_is_not_apples_is_served_as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: SimpleNamespace(type=mx.DeviceType.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "H100"})
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    backend = make_backend("mlx", small_model("bge"))
    backend.load()
    assert (backend.device, backend.precision) == ("gpu (H100)", "fp16")
