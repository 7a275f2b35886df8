"""Measurements hold for what they were made under, and a file that is spoilt was never made."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from impetus_backends.cache import cache_folder, write_whole
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.machine.measurements import (
    Conditions,
    Measurement,
    MeasurementCache,
    compare,
    conditions,
    measure,
    standard_batch,
)
from tests.backends.conftest import small_model
from tests.backends.machine.machines import machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.embedding.devices.backend import EmbeddingBackend

UNDER = Conditions("Apple M4", "24D70", "abc", ("mlx 0.32",))
MADE = Measurement(UNDER, "some/model", (("coreml", 0.01), ("mlx", 0.02)), "2026-11-23T10:00:00+00:00")


class Timed:
    """Takes the seconds it is told, on a clock that is the test's."""

    device = precision = "none"

    def __init__(self, name: str, seconds: Sequence[float], log: list[str], now: list[float]) -> None:
        self.name = name
        self._seconds = iter(seconds)
        self._log = log
        self._now = now

    def load(self) -> None: ...

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        self._log.append(self.name)
        self._now[0] += next(self._seconds)
        return np.zeros((len(rows), 1))


def timed(**seconds: Sequence[float]) -> tuple[list[EmbeddingBackend], list[str], list[float]]:
    log: list[str] = []
    now = [0.0]
    return [cast("EmbeddingBackend", Timed(name, each, log, now)) for name, each in seconds.items()], log, now


def test_a_device_is_as_fast_as_its_median_and_the_first_run_does_not_count() -> None:
    backends, log, now = timed(a=[100, 1, 9, 2], b=[50, 4, 4, 5])
    assert measure(backends, [], rounds=3, clock=lambda: now[0]) == (("a", 2), ("b", 4))
    assert log == ["a", "b"] * 4  # by turns, so that a busy machine slows both


def test_the_standard_batch_is_always_the_same_and_no_longer_than_the_model_reads() -> None:
    rows = standard_batch(30_000, 512)
    assert len(rows) == 32
    assert 50 <= np.mean([len(row) for row in rows]) <= 60
    assert all(row.dtype == np.int32 and row.min() >= 0 and row.max() < 30_000 for row in rows)
    for one, other in zip(rows, standard_batch(30_000, 512), strict=True):
        np.testing.assert_array_equal(one, other)
    assert max(len(row) for row in standard_batch(100, 24)) == 24


def test_a_slow_machine_is_asked_for_fewer_rounds() -> None:
    backends, log, now = timed(a=[4.0] * 8)
    assert measure(backends, [], rounds=7, clock=lambda: now[0]) == (("a", 4.0),)
    assert len(log) == 4


def test_real_backends_are_measured_by_a_real_clock() -> None:
    config = read_config(small_model("bge"))
    backends = [make_backend(name, config) for name in ("cpu", "numpy")]
    for backend in backends:
        backend.load()
    made = compare(backends, config, under=UNDER, model="small")
    assert [name for name, _ in made.seconds] == ["cpu", "numpy"]
    assert all(0 < seconds < 10 for _, seconds in made.seconds)


def test_what_was_measured_is_found_under_the_same_conditions_and_no_others(tmp_path: Path) -> None:
    cache = MeasurementCache(tmp_path / "not yet there")
    assert cache.find(UNDER) is None
    cache.keep(MADE)
    assert cache.find(UNDER) == MADE
    for change in ({"chip": "Apple M5"}, {"build": "24E1"}, {"fingerprint": "abd"}, {"packages": ("mlx 0.33",)}):
        assert cache.find(dataclasses.replace(UNDER, **change)) is None


@pytest.mark.parametrize(
    "spoilt",
    [
        "",
        "{",
        "[]",
        '{"conditions": 3}',
        json.dumps({**dataclasses.asdict(MADE), "seconds": [["coreml", "fast"]]}),
        json.dumps({**dataclasses.asdict(MADE), "seconds": [["coreml", -1]]}),
        json.dumps({**dataclasses.asdict(MADE), "seconds": [["coreml", float("nan")]]}),
        json.dumps({**dataclasses.asdict(MADE), "conditions": {**dataclasses.asdict(UNDER), "chip": "Apple M1"}}),
        "\udcff",
    ],
)
def test_a_spoilt_file_counts_as_never_measured_and_is_written_over(tmp_path: Path, spoilt: str) -> None:
    cache = MeasurementCache(tmp_path)
    cache.keep(MADE)
    (file,) = tmp_path.iterdir()
    file.write_bytes(spoilt.encode(errors="surrogateescape"))
    assert cache.find(UNDER) is None
    assert cache.latest(machine("m4"), ["some/model"]) is None
    cache.keep(MADE)
    assert cache.find(UNDER) == MADE


def test_who_knows_no_fingerprint_finds_the_newest_for_this_machine_by_the_models_name(tmp_path: Path) -> None:
    cache, hardware = MeasurementCache(tmp_path), machine("m4")
    here = Measurement(conditions(hardware, "one"), "some/model", MADE.seconds, "2026-11-01T00:00:00+00:00")
    newer = dataclasses.replace(here, conditions=conditions(hardware, "two"), measured_at="2026-11-02T00:00:00+00:00")
    elsewhere = dataclasses.replace(newer, conditions=conditions(machine("m5"), "two"), measured_at="2027")
    for made in (newer, here, elsewhere):
        cache.keep(made)
    assert cache.latest(hardware, ["model", "some/model"]) == newer
    assert cache.latest(hardware, ["another"]) is None
    assert MeasurementCache(tmp_path / "none").latest(hardware, ["some/model"]) is None


def test_who_was_not_measured_is_neither_faster_nor_slower() -> None:
    assert MADE.faster("coreml", "mlx") is True
    assert MADE.faster("mlx", "coreml") is False
    assert MADE.faster("coreml", "cpu") is None


def test_a_reader_sees_the_old_file_or_the_new_one_and_never_a_part(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file.json"
    contents = {letter * 200_000 for letter in "abc"}
    write_whole(file, "a" * 200_000)
    done = threading.Event()

    def write() -> None:
        for _ in range(20):
            for content in contents:
                write_whole(file, content)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert file.read_text() in contents
    writer.join()
    assert [entry.name for entry in file.parent.iterdir()] == ["file.json"]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "file", "content")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_cache_is_where_the_system_keeps_caches_unless_one_says_otherwise() -> None:
    home = Path("~").expanduser()
    assert cache_folder({}, "darwin") == home / "Library" / "Caches" / "impetus"
    assert cache_folder({}, "linux") == home / ".cache" / "impetus"
    assert cache_folder({"XDG_CACHE_HOME": "/var/x"}, "linux") == Path("/var/x/impetus")
    assert cache_folder({"IMPETUS_CACHE_DIR": "~/mine"}, "darwin") == home / "mine"
