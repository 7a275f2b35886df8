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


def vectors(rows: int) -> list[np.ndarray]:
    return [np.arange(1, 1 + 4 * rows, dtype=np.float32).reshape(rows, 4)]


def runs(compiled: Compiled, device: Device, rows: int, times: int) -> str:
    device.ran = ""
    for _ in range(times):
        compiled(vectors(rows))
    return device.ran


def test_a_shape_is_compiled_once_it_has_come_again_and_again() -> None:
    device = Device(plain_s=2.0, compiled_s=1.0)
    compiled = Compiled(device.plain, device.compiler, device.clock)
    assert compiled.try_on(vectors(8))
    assert runs(compiled, device, 8, 4) == "ppcc"
    assert runs(compiled, device, 16, 2) == "pp"
    assert runs(compiled, device, 8, 1) == "c"


def test_what_is_no_faster_is_not_compiled() -> None:
    device = Device(plain_s=1.0, compiled_s=0.99)
    compiled = Compiled(device.plain, device.compiler, device.clock)
    assert not compiled.try_on(vectors(8))
    assert runs(compiled, device, 8, 5) == "ppppp"


def test_what_has_not_been_tried_is_not_compiled() -> None:
    device = Device(plain_s=2.0, compiled_s=1.0)
    assert runs(Compiled(device.plain, device.compiler, device.clock), device, 8, 5) == "ppppp"


@pytest.mark.parametrize("wrong", [lambda x: x[:, ::-1], lambda x: x * np.nan])
def test_what_comes_to_other_vectors_is_not_compiled(wrong: Callable[[np.ndarray], np.ndarray]) -> None:
    device = Device(plain_s=2.0, compiled_s=1.0)
    right = device.compiler(device.plain)
    compiled = Compiled(device.plain, lambda _: lambda *arrays: wrong(right(*arrays)), device.clock)
    assert not compiled.try_on(vectors(8))


def test_a_compiler_that_fails_is_done_without() -> None:
    def failing(*arrays: np.ndarray) -> np.ndarray:
        raise ValueError("[compile] no such primitive")

    device = Device(plain_s=2.0, compiled_s=1.0)
    compiled = Compiled(device.plain, lambda _: failing, device.clock)
    assert not compiled.try_on(vectors(8))
    assert runs(compiled, device, 8, 4) == "pppp"


def test_only_so_many_shapes_are_compiled() -> None:
    device = Device(plain_s=2.0, compiled_s=1.0)
    compiled = Compiled(device.plain, device.compiler, device.clock)
    assert compiled.try_on(vectors(1))
    assert "c" not in "".join(runs(compiled, device, rows, 1) for rows in range(1, 257))
    assert runs(compiled, device, 300, 4) == "pppp"
    assert runs(compiled, device, 7, 3) == "pcc"


@pytest.mark.parametrize("name", ["bge", "modernbert", "gemma"])
def test_a_compiled_model_makes_the_vectors_of_the_model(name: str) -> None:
    backend = make_backend("mlx", small_model(name))
    assert isinstance(backend, MLXEmbeddingBackend)
    backend.load()
    backend.compile(mx.compile)
    (compiled,) = backend.compiled.values()  # models as small as these never share rows
    random = np.random.default_rng(1)
    rows = [random.integers(5, 100, length, dtype=np.int32) for length in (10, 24, 30, 16)]
    alone = backend.embed(rows)
    compiled.pays = True  # whatever the clock of this machine said
    for made in [backend.embed(rows) for _ in range(4)]:
        np.testing.assert_allclose(made, alone, atol=2e-6)


def test_a_gpu_that_is_not_apples_is_served_as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: SimpleNamespace(type=mx.DeviceType.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "H100"})
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    backend = make_backend("mlx", small_model("bge"))
    backend.load()
    assert (backend.device, backend.precision) == ("gpu (H100)", "fp16")
