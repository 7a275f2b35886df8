"""The MLX backend runs a model compiled where that was measured to pay, and for shapes that come again."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import mlx.core as mx
import numpy as np
import pytest

from impetus_backends.embedding.devices import compiled as compiled_module
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.compiled import Compiled
from impetus_backends.embedding.devices.mlx import MLXEmbeddingBackend

from ..conftest import small_model
from ..texts.test_long_texts import lengthened, rows_of_lengths

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Device:
    """Runs a function of arrays, plain and compiled; what a run takes moves its clock."""

    def __init__(self, plain_s: float, compiled_s: float, kept_bytes: int = 0) -> None:
        """`kept_bytes`: what is kept of each shape that is compiled, as long as its function is."""
        self.now, self.ran = 0.0, ""
        self._plain_s, self._compiled_s = plain_s, compiled_s
        self._kept_bytes = kept_bytes
        self._compiled: WeakSet[Callable[..., Any]] = WeakSet()

    def clock(self) -> float:
        return self.now

    def memory_bytes(self) -> int:
        return self._kept_bytes * len(self._compiled)

    def run(self, compiler: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None) -> Compiled:
        return Compiled(self.plain, compiler or self.compiler, self.memory_bytes, self.clock)

    def plain(self, *arrays: np.ndarray) -> np.ndarray:
        self.now += self._plain_s
        self.ran += "p"
        return arrays[0] * 2

    def compiler(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def compiled(*arrays: np.ndarray) -> np.ndarray:
            self.now += self._compiled_s
            self.ran += "c"
            return arrays[0] * 2

        self._compiled.add(compiled)
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
    compiled = device.run()
    assert runs(compiled, device, 8, 10) == "ppp" + "pc" + "cc" + "cccc"
    assert runs(compiled, device, 16, 3) == "ppp"
    assert runs(compiled, device, 8, 1) == "c"


def test_a_shape_that_is_no_faster_compiled_runs_as_it_is() -> None:
    device = Device(plain_s=1.0, compiled_s=0.99)
    assert runs(device.run(), device, 8, 9) == "ppp" + "pc" + "cc" + "ppp"


@pytest.mark.parametrize("wrong", [lambda x: x[:, ::-1], lambda x: x * np.nan])
def test_what_comes_to_other_vectors_never_serves(wrong: Callable[[np.ndarray], np.ndarray]) -> None:
    device = Device(plain_s=2.0, compiled_s=1.0)
    other = device.compiler(device.plain)
    compiled = device.run(lambda _: lambda *arrays: wrong(other(*arrays)))
    assert runs(compiled, device, 8, 9) == "ppp" + "pc" + "ppppp"
    np.testing.assert_array_equal(compiled(vectors(8)), vectors(8)[0] * 2)


def test_vectors_of_places_without_a_text_are_no_reason_not_to_compile() -> None:
    device = Device(plain_s=2.0, compiled_s=1.0)
    compiled = device.run()
    for _ in range(7):
        device.ran = ""
        compiled([np.vstack([vectors(3)[0], np.zeros((1, 4), np.float32)])])
    assert device.ran == "c"


def test_a_compiler_that_fails_is_done_without() -> None:
    def failing(*arrays: np.ndarray) -> np.ndarray:
        raise ValueError("[compile] no such primitive")

    device = Device(plain_s=2.0, compiled_s=1.0)
    assert runs(device.run(lambda _: failing), device, 8, 8) == "pppppppp"


def test_what_a_model_cannot_do_is_raised_as_ever() -> None:
    def failing(*arrays: np.ndarray) -> np.ndarray:
        raise ValueError("no more memory")

    device = Device(plain_s=2.0, compiled_s=1.0)
    with pytest.raises(ValueError, match="memory"):
        Compiled(failing, device.compiler, device.memory_bytes, device.clock)(vectors(8))


def test_a_compiled_shape_that_fails_later_runs_as_it_is_from_then_on() -> None:
    device = Device(plain_s=2.0, compiled_s=1.0)
    full: list[str] = []

    def compiler(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = device.compiler(function)

        def run(*arrays: np.ndarray) -> np.ndarray:
            made: np.ndarray = compiled(*arrays)
            if full:
                raise MemoryError(full[0])
            return made

        return run

    compiled = device.run(compiler)
    assert runs(compiled, device, 8, 8).endswith("cc")
    full.append("no more memory")
    assert runs(compiled, device, 8, 3) == "cp" + "pp"


def test_what_is_timed_is_what_the_device_does_and_not_what_it_is_asked() -> None:
    device = Device(plain_s=2.0, compiled_s=1.0)

    class Asked:
        """Of a device that works when the answer is read."""

        def __init__(self, function: Callable[..., Any], arrays: Sequence[Any]) -> None:
            self._function, self._arrays = function, arrays

        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            return np.asarray(self._function(*self._arrays), dtype)

    fast = device.compiler(device.plain)
    compiled = Compiled(
        lambda *arrays: Asked(device.plain, arrays), lambda _: lambda *arrays: Asked(fast, arrays),
        device.memory_bytes, device.clock,
    )  # fmt: skip
    assert runs(compiled, device, 8, 8) == "ppp" + "pc" + "cc" + "cc"


def test_the_compiler_s_own_time_is_not_counted() -> None:
    device = Device(plain_s=2.0, compiled_s=1.0)

    def compiler(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled, made = device.compiler(function), list[int]()

        def run(*arrays: np.ndarray) -> Any:
            device.now += 0.0 if made else 60.0
            made.append(1)
            return compiled(*arrays)

        return run

    assert runs(device.run(compiler), device, 8, 8).endswith("cc")


def test_shapes_that_came_once_keep_none_from_being_compiled() -> None:
    device = Device(plain_s=2.0, compiled_s=1.0)
    compiled = device.run()
    for rows in range(1, 600):
        compiled(vectors(rows))
    assert runs(compiled, device, 1000, 8).endswith("cc")


def test_what_compiled_shapes_keep_is_bounded_and_the_one_that_was_last_used_longest_ago_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled_module, "_MOST_BYTES", 100)
    device = Device(plain_s=2.0, compiled_s=1.0, kept_bytes=40)
    compiled = device.run()
    for rows in (1, 2):
        assert runs(compiled, device, rows, 8).endswith("cc")
    runs(compiled, device, 1, 1)
    assert runs(compiled, device, 3, 8).endswith("cc")
    assert device.memory_bytes() == 80
    assert (runs(compiled, device, 2, 1), runs(compiled, device, 1, 1)) == ("p", "c")


def test_of_very_many_shapes_those_that_came_last_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_module, "_MOST_SHAPES", 2)
    device = Device(plain_s=2.0, compiled_s=1.0, kept_bytes=40)
    compiled = device.run()
    for rows in (1, 2, 3):
        assert runs(compiled, device, rows, 8).endswith("cc")
    assert device.memory_bytes() == 80
    assert (runs(compiled, device, 2, 1), runs(compiled, device, 3, 1), runs(compiled, device, 1, 1)) == ("c", "c", "p")


def test_a_shape_that_keeps_more_than_all_may_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_module, "_MOST_BYTES", 100)
    device = Device(plain_s=2.0, compiled_s=1.0, kept_bytes=101)
    assert runs(device.run(), device, 8, 8) == "ppp" + "pc" + "pppp"
    assert device.memory_bytes() == 0


def test_what_does_not_pay_keeps_nothing() -> None:
    device = Device(plain_s=1.0, compiled_s=1.0, kept_bytes=40)
    compiled = device.run()
    runs(compiled, device, 8, 6)
    assert device.memory_bytes() == 0


def test_mlx_keeps_no_more_of_compiled_shapes_than_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers of this model look at their neighbours: of 512 tokens that is half a megabyte."""
    monkeypatch.setattr(compiled_module, "_MOST_BYTES", 1_200_000)
    config = lengthened("modernbert")
    backend = MLXEmbeddingBackend(config)
    backend.load()
    function = backend.function(packed=False)
    lengths = (512, 528, 544)
    alone = {length: backend.embed(rows_of_lengths(config, length)) for length in lengths}
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    backend.run_by[False] = Compiled(function, mx.compile, mx.get_active_memory, RunningFaster().clock)
    for length in lengths:
        for _ in range(7):
            np.testing.assert_allclose(backend.embed(rows_of_lengths(config, length)), alone[length], atol=2e-6)
    gc.collect()
    assert 500_000 < mx.get_active_memory() - before < 1_300_000


@pytest.mark.parametrize("name", ["bge", "modernbert", "gemma"])
def test_a_compiled_model_makes_the_vectors_of_the_model(name: str) -> None:
    backend = make_backend("mlx", small_model(name))
    assert isinstance(backend, MLXEmbeddingBackend)
    backend.load()
    random = np.random.default_rng(1)
    rows = [random.integers(5, 100, length, dtype=np.int32) for length in (10, 24, 30, 16)]
    alone = backend.embed(rows)
    compiled = Compiled(backend.function(packed=False), mx.compile, mx.get_active_memory, RunningFaster().clock)
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
