"""What a process has of the memory, and which models leave when that nears what it may have."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.machine import footprint
from impetus_backends.machine.footprint import NEAR, MemoryWatch, Use, footprint_in, of_linux, used_bytes
from impetus_backends.models import ModelFiles
from impetus_backends.pool import ModelPool
from impetus_backends.protocol import EngineInfo, Event, GenerationWork, Parked
from impetus_producer import Producer
from impetus_producer.watching.fleet import read_fleet
from tests.patience import eventually

from ...worker.conftest import fleet  # noqa: F401 - a fixture
from ..conftest import small_model

if TYPE_CHECKING:
    from pathlib import Path

    from ...worker.conftest import Fleet

MIB = 2**20
STATUS = """Name:\tpython
VmRSS:\t  900000 kB
RssAnon:\t  300000 kB
RssFile:\t  600000 kB
RssShmem:\t       24 kB
VmSwap:\t    1000 kB
"""


def test_what_is_of_no_file_counts_on_linux_also_where_it_was_swapped_out(tmp_path: Path) -> None:
    (tmp_path / "status").write_text(STATUS)
    assert of_linux(tmp_path / "status") == 1024 * (300_000 + 24 + 1000)


@pytest.mark.parametrize("said", [b"RssAnon:\n", b"RssAnon: many kB\n", b"\xff\xfe", None])
def test_what_cannot_be_read_is_not_known(said: bytes | None, tmp_path: Path) -> None:
    if said is not None:
        (tmp_path / "status").write_bytes(said)
    assert of_linux(tmp_path / "status") is None


TAKING = """
import json, mmap, sys
from impetus_backends.machine.footprint import used_bytes
before = used_bytes()
array = bytearray(b"x") * (64 * 1024 * 1024)
taken = used_bytes() - before
before = used_bytes()
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    assert sum(mapped[at] for at in range(0, len(mapped), 4096)) == 0
    print(json.dumps([taken, used_bytes() - before]))
"""
"""Prints by how many bytes the process has more after it took 64 MB, and after it looked at a file of 64 MB."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_that_is_taken_counts_and_a_file_that_is_looked_at_does_not(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(64 * MIB))
    # In a process of its own: in this one others may give memory back meanwhile.
    told = subprocess.run([sys.executable, "-c", TAKING, tmp_path / "weights"], capture_output=True, check=True).stdout
    taken, looked_at = json.loads(told)
    assert taken > 60 * MIB
    assert looked_at < 16 * MIB


class Library:
    """As the system's own on a Mac: the footprint is in its place among the other figures."""

    mach_task_self_ = 7

    def __init__(self, footprint_bytes: int, *, size: int = 93 * 4, status: int = 0) -> None:
        self._footprint, self._size, self._status = footprint_bytes, size, status
        self.asked: list[Any] = []

    def task_info(self, task: Any, flavour: int, told: Any, count: Any) -> int:
        self.asked.append((task.value, flavour, count._obj.value))
        figures = bytes(range(144)) + self._footprint.to_bytes(8, sys.byteorder) + bytes(400)
        ctypes.memmove(told, figures, self._size)
        count._obj.value = self._size // 4
        return self._status


def test_the_footprint_of_a_mac_is_read_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "_task", lambda library: ctypes.c_uint(library.mach_task_self_))
    library = Library(12345 * MIB)
    assert footprint._of_macos(library) == 12345 * MIB
    assert library.asked == [(7, 22, 256)]
    assert footprint._of_macos(Library(1, status=5)) is None
    assert footprint._of_macos(Library(1, size=144)) is None, "an older system tells no footprint"
    assert footprint_in(b"") is None


@pytest.mark.skipif(sys.platform == "darwin", reason="there is a system library on a Mac")
def test_where_there_is_no_such_library_nothing_is_known() -> None:
    assert used_bytes("darwin") is None


def test_memory_is_looked_at_now_and_then_and_not_at_all_without_a_limit() -> None:
    now, asked = 0.0, []

    def used() -> int:
        asked.append(now)
        return 95

    watch = MemoryWatch(100, used, lambda: now)
    assert watch.look() == Use(95, 100)
    assert watch.look() is None
    now = footprint.LOOK_S
    assert watch.look() == Use(95, 100)
    assert asked == [0.0, footprint.LOOK_S]
    assert MemoryWatch(None, used).look() is None
    assert MemoryWatch(100, lambda: None).look() is None
    assert not Use(89, 100).near
    assert Use(90, 100).near
    assert NEAR == 0.9
    assert str(Use(2**30, 4 * 2**30)) == "1.00 GiB of the 4.00 GiB allowed"


class Engine:
    """Runs a request for `max_tokens` steps."""

    def __init__(self, name: str) -> None:
        self.info = EngineInfo("generation", "test", "cpu", name, (name,), name, "float32")
        self.open = True
        self.left: dict[int, int] = {}

    def admit(self, work: GenerationWork) -> None:
        assert self.open
        self.left[work.id] = work.max_tokens or 1

    def pending(self) -> int:
        return len(self.left)

    def step(self) -> list[Event]:
        assert self.open
        self.left = {work_id: left - 1 for work_id, left in self.left.items() if left > 1}
        return []

    def resize(self, share: int | None) -> bool:
        return True

    def close(self) -> None:
        assert not self.left
        self.open = False


class House:
    """Three models and a process whose memory is what the test says."""

    def __init__(self, folder: Path) -> None:
        self.now, self.used = 0.0, 0
        self.engines: dict[str, Engine] = {}
        files = [ModelFiles(name, folder, (name,)) for name in "abc"]
        watch = MemoryWatch(100, lambda: self.used, lambda: self.now)
        self.pool = ModelPool(
            files, [1, 1, 1], self.open_one, memory_bytes=None, max_concurrent=8, watch=watch, clock=lambda: self.now
        )

    def open_one(self, files: ModelFiles, memory_bytes: int | None) -> Any:
        self.engines[files.name] = Engine(files.name)
        return self.engines[files.name]

    @property
    def loaded(self) -> str:
        return "".join(name for name, engine in sorted(self.engines.items()) if engine.open)

    def ask(self, work_id: int, model: str, steps: int = 1) -> None:
        self.pool.admit(GenerationWork(work_id, "x", None, steps, model=model))

    def step(self, seconds: float = footprint.LOOK_S) -> list[Event]:
        self.now += seconds
        return self.pool.step()


def house_of_three(folder: Path) -> House:
    """All are loaded, and used in the order of their names."""
    house = House(folder)
    for number, name in enumerate("abc"):
        house.ask(number, name)
        while house.pool.pending():
            house.step()
    assert house.loaded == "abc"
    return house


def test_near_the_limit_the_least_recently_used_model_leaves_one_at_a_look(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = house_of_three(tmp_path)
    house.used = 89
    house.step()
    assert house.loaded == "abc"
    house.used = 90
    house.step()
    assert house.loaded == "bc"
    assert "allowed: a leaves" in caplog.text
    house.step(footprint.LOOK_S / 2)
    assert house.loaded == "bc", "what the first gave back is seen at the next look"
    house.step()
    assert house.loaded == "c"
    house.step()
    assert house.loaded == "c", "the last one stays"


def test_a_model_at_work_ends_that_first_and_what_comes_for_it_is_served_later(tmp_path: Path) -> None:
    house = house_of_three(tmp_path)
    for number, name in enumerate("abc"):
        house.ask(10 + number, name, steps=4)
    house.used = 95
    house.step()
    assert house.loaded == "abc"
    house.ask(20, "a")
    assert Parked(20) in house.step(0.1)
    house.used = 10
    seen = []
    for _ in range(9):
        house.step(0.1)
        seen.append(house.loaded)
    assert {"abc", "bc"} == set(seen)
    assert house.loaded == "abc"
    assert house.pool.pending() == 0


def test_one_that_was_to_leave_stays_when_memory_is_free_again(tmp_path: Path) -> None:
    house = house_of_three(tmp_path)
    for number, name in enumerate("abc"):
        house.ask(10 + number, name, steps=9)
    house.used = 95
    house.step(0.1 + footprint.LOOK_S)
    house.used = 10
    house.step()
    while house.pool.pending():
        house.step()
    assert house.loaded == "abc"


@pytest.mark.system
def test_a_worker_says_what_it_has_and_lets_models_leave_before_the_system_ends_it(fleet: Fleet) -> None:  # noqa: F811
    worker = fleet.start(
        *("--embedding-backend", "numpy", "--embedding-model", str(small_model("bge"))),
        *("--more-embedding-models", str(small_model("electra")), "--memory-limit-gb", "0.01"),
    )
    producer: Producer = Producer(connection=fleet.connection)
    for _ in range(2):
        for model in ("bge", "electra"):
            assert producer.embed("a text", model=model).result(timeout_s=60).model == model
    eventually(lambda: " leaves" in worker.log)
    assert "; --memory-limit-gb allows another amount" in worker.log

    def told() -> bool:
        (state,) = read_fleet(fleet.connection).workers
        return (state.memory_bytes or 0) > 10 * MIB and state.memory_limit_bytes == int(0.01 * 2**30)

    eventually(told)
    assert worker.stop() == 0
