"""Two devices at once: the short texts of a batch on one, the long ones on the other, as was measured."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from impetus_backends.embedding.devices.backends import BOTH, make_backend
from impetus_backends.embedding.devices.both import BothBackend, Curve, fit, split
from impetus_backends.embedding.devices.reference import NumpyEmbeddingBackend
from impetus_backends.embedding.engine import open_engine
from impetus_backends.embedding.folder.config import EmbeddingConfig, read_config
from impetus_backends.embedding.folder.fitting import open_weights
from impetus_backends.errors import BackendUnavailableError, RequestError
from impetus_backends.models import resolve
from impetus_backends.protocol import Embedded, EmbeddingWork

from ..conftest import small_model

if TYPE_CHECKING:
    from collections.abc import Sequence

ANE, GPU = Curve(0.002, 60e-6, 0.4e-6), Curve(0.012, 50e-6)
CURVES = st.builds(Curve, st.floats(0, 0.1), st.floats(1e-6, 1e-3), st.floats(0, 1e-5))
LENGTHS = st.lists(st.integers(1, 600), min_size=1, max_size=80)


@pytest.fixture
def config() -> EmbeddingConfig:
    return read_config(small_model("bge"))


class Timed(NumpyEmbeddingBackend):
    """The reference, whose time is a curve's, by a clock of each thread's own."""

    def __init__(self, config: EmbeddingConfig, name: str, curve: Curve, clock: threading.local) -> None:
        super().__init__(config)
        self.name = self.device = name
        self.curve, self.clock, self.breaks = curve, clock, False
        self.ran: list[list[int]] = []
        self.threads: set[int] = set()

    def load(self) -> None:
        self.threads.add(threading.get_ident())
        super().load()

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        lengths = [len(row) for row in rows]
        self.ran.append(lengths)
        self.threads.add(threading.get_ident())
        self.clock.now = getattr(self.clock, "now", 0.0) + self.curve.seconds(np.array(lengths))
        if self.breaks:
            raise RequestError("no row of these")
        return super().embed(rows)


@pytest.fixture
def clock() -> threading.local:
    return threading.local()


@pytest.fixture
def devices(config: EmbeddingConfig, clock: threading.local) -> tuple[Timed, Timed]:
    return (
        Timed(config, "ane", Curve(0.0002, 60e-6, 8e-6), clock),
        Timed(config, "gpu", Curve(0.001, 50e-6), clock),
    )


@pytest.fixture
def both(config: EmbeddingConfig, devices: tuple[Timed, Timed], clock: threading.local) -> BothBackend:
    backend = BothBackend(BOTH, config, devices, clock=lambda: getattr(clock, "now", 0.0))
    backend.load()
    for device in devices:
        device.ran.clear()
    return backend


def rows_of(*lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.integers(5, 90, length, dtype=np.int32) for length in lengths]


@given(LENGTHS, CURVES, CURVES)
def test_every_text_goes_to_one_device_by_length_and_never_later_than_one_alone_would_end(
    lengths: list[int], one: Curve, other: Curve
) -> None:
    found = split(lengths, (one, other))
    assert sorted(at for part in found.rows for at in part) == list(range(len(lengths)))
    sizes = np.array(lengths)
    parts = [sizes[part] for part in found.rows]
    if all(map(len, parts)):
        assert parts[0].max() <= parts[1].min() or parts[1].max() <= parts[0].min()
    took = max(curve.seconds(part) for curve, part in zip((one, other), parts, strict=True))
    assert took == pytest.approx(found.seconds)
    assert took <= min(one.seconds(sizes), other.seconds(sizes)) * (1 + 1e-9)


def test_a_short_text_goes_to_the_one_that_is_soonest_called_and_a_long_one_to_the_other() -> None:
    assert [len(part) for part in split([16], (ANE, GPU)).rows] == [1, 0]
    assert [len(part) for part in split([500], (ANE, GPU)).rows] == [0, 1]
    short, long = split([500, 8, 400, 12, 16], (ANE, GPU)).rows
    assert (sorted(short), sorted(long)) == ([1, 3, 4], [0, 2])
    assert [len(part) for part in split([16], (GPU, ANE)).rows] == [0, 1], "no rank decides"


@given(CURVES)
def test_a_curve_is_found_again_in_what_a_device_took(curve: Curve) -> None:
    shapes = [[16], [512], [64] * 8, [128] * 32, [512] * 4]
    found = fit([(each, curve.seconds(np.array(each))) for each in shapes])
    for each in (*shapes, [32] * 16):
        assert found.seconds(np.array(each)) == pytest.approx(curve.seconds(np.array(each)), rel=0.05)


def test_a_curve_that_would_fall_is_level() -> None:
    found = fit([([16], 0.01), ([512], 0.009), ([64] * 8, 0.0095)])
    assert min(found.call_s, found.token_s, found.square_s) >= 0


def test_vectors_are_those_of_the_reference_in_their_order_and_both_devices_work(
    both: BothBackend, devices: tuple[Timed, Timed], config: EmbeddingConfig
) -> None:
    rows = rows_of(40, 5, 36, 7, 9, 38, 6, 35)
    reference = NumpyEmbeddingBackend(config)
    reference.load()
    assert np.allclose(both.embed(rows), reference.embed(rows), atol=1e-6)
    (short,), (long,) = (device.ran for device in devices)
    assert max(short) <= min(long)
    assert sorted(short + long) == sorted(map(len, rows))


def test_each_device_is_loaded_and_run_by_one_thread_which_is_its_own(
    both: BothBackend, devices: tuple[Timed, Timed]
) -> None:
    for _ in range(3):
        both.embed(rows_of(40, 5, 38, 6))
    used = [device.threads for device in devices]
    assert [len(each) for each in used] == [1, 1]
    assert used[0] != used[1]
    assert threading.get_ident() not in used[0] | used[1]


def test_a_device_that_has_become_slower_gets_less(both: BothBackend, devices: tuple[Timed, Timed]) -> None:
    rows = rows_of(*range(10, 40))
    both.embed(rows)
    before = len(devices[0].ran[-1])
    devices[0].curve = devices[0].curve.corrected(4)
    for _ in range(20):
        both.embed(rows)
    assert len(devices[0].ran[-1]) < 0.6 * before


def test_one_batch_that_lasted_over_a_sleep_takes_little_from_a_device(
    both: BothBackend, devices: tuple[Timed, Timed]
) -> None:
    rows, curve = rows_of(*range(10, 40)), devices[0].curve
    both.embed(rows)
    before = len(devices[0].ran[-1])
    devices[0].curve = Curve(36_000.0, 0.0)
    both.embed(rows)
    devices[0].curve = curve
    devices[0].ran.clear()
    both.embed(rows)
    assert len(devices[0].ran[-1]) > 0.7 * before


def test_a_device_that_was_too_slow_for_any_text_is_tried_again(
    both: BothBackend, devices: tuple[Timed, Timed]
) -> None:
    rows, curve = rows_of(*range(10, 40)), devices[0].curve
    devices[0].curve = curve.corrected(1000)
    for _ in range(60):
        both.embed(rows)
    devices[0].ran.clear()
    both.embed(rows)
    assert not devices[0].ran
    devices[0].curve = curve
    for _ in range(400):
        both.embed(rows)
    assert len(devices[0].ran[-1]) > 5


def test_what_one_refuses_is_raised_when_both_have_ended_and_the_next_batch_runs(
    both: BothBackend, devices: tuple[Timed, Timed]
) -> None:
    devices[0].breaks = True
    with pytest.raises(RequestError, match="no row of these"):
        both.embed(rows_of(40, 5, 38, 6))
    devices[0].breaks = False
    assert both.embed(rows_of(40, 5)).shape == (2, both._config.dimensions)


def test_it_serves_as_one_engine_that_names_both_devices(both: BothBackend) -> None:
    engine = open_engine(both, resolve(str(small_model("bge"))))
    assert engine.info.device == "ane + gpu"
    assert engine.info.neural_engine
    assert engine.info.packs
    assert engine.info.batch_tokens == 8192
    assert f"/{BOTH}/" in engine.info.fingerprint
    assert "cut by length" in str(engine.info.note)
    engine.admit(EmbeddingWork(1, rows_of(40, 5, 38, 6), urgent=True))
    (event,) = engine.step()
    assert isinstance(event, Embedded)
    assert event.vectors.shape == (4, both._config.dimensions)


def test_it_needs_the_memory_of_both(both: BothBackend, config: EmbeddingConfig) -> None:
    assert both.memory_bytes == 2 * open_weights(config).size_bytes()


def test_where_one_of_them_cannot_serve_neither_does(config: EmbeddingConfig) -> None:
    with pytest.raises(BackendUnavailableError):
        make_backend(BOTH, config).load()
