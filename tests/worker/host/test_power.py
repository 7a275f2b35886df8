"""What is done about sleep, with stand-ins for caffeinate, pmset and IOKit: no Mac has run it yet."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from impetus_worker.host.power import (
    MacPower,
    NoPower,
    StayAwake,
    draws_from_battery,
    on_battery,
    open_power,
    try_power,
)
from impetus_worker.host.sleep_notices import CAN_SLEEP, WILL_SLEEP, SleepNotices, load_iokit
from impetus_worker.settings import WorkerSettings
from tests.patience import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# As `pmset -g batt` prints it.
MAINS = """Now drawing from 'AC Power'
 -InternalBattery-0 (id=4653155)\t80%; charging; 0:51 remaining present: true
"""
BATTERY = """Now drawing from 'Battery Power'
 -InternalBattery-0 (id=4653155)\t79%; discharging; 4:21 remaining present: true
"""
UPS = """Now drawing from 'UPS Power'
 -SMART-UPS (id=1)\t100%; charging present: true
"""
DESKTOP = "Now drawing from 'AC Power'\n"
# Stays, as caffeinate -w does, and notes how it was called and how it ended.
_CAFFEINATE = """
import os, signal, sys
def note(word):
    with open(sys.argv[1], "a") as log:
        log.write(f"{word} {os.getpid()} {' '.join(sys.argv[2:])}\\n")
def end(number, frame):
    note("ended")
    sys.exit()
signal.signal(signal.SIGTERM, end)
note("began")
signal.pause()
"""


class Stage:
    """The programs of a Mac."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "caffeinate.log"
        self.says = folder / "batt"
        self.says.write_text(MAINS)
        self.caffeinate = [sys.executable, "-c", _CAFFEINATE, str(self.log)]
        self.pmset = [sys.executable, "-c", f"print(open({str(self.says)!r}).read())"]
        self._awake: list[StayAwake] = []

    def awake(self, **more: Any) -> StayAwake:
        settings = {"caffeinate": self.caffeinate, "pmset": self.pmset, "linger_s": 0.05, "look_s": 0.05, **more}
        self._awake.append(StayAwake(**settings))
        return self._awake[-1]

    def lines(self, word: str) -> list[list[str]]:
        text = self.log.read_text() if self.log.exists() else ""
        return [line.split() for line in text.splitlines() if line.startswith(word)]

    def close(self) -> None:
        for each in self._awake:
            each.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


# -- staying awake ---------------------------------------------------------------------------------------------------


def test_while_jobs_run_idle_sleep_is_held_off_and_then_no_more(stage: Stage) -> None:
    awake = stage.awake()
    awake.working(True)
    ((_, pid, *arguments),) = eventually(lambda: stage.lines("began"))
    assert arguments == ["-i", "-w", str(os.getpid())]
    awake.working(False)
    assert eventually(lambda: stage.lines("ended"))[0][1] == pid
    awake.working(True)
    eventually(lambda: len(stage.lines("began")) == 2)


def test_job_upon_job_is_one_spell_of_work(stage: Stage) -> None:
    awake = stage.awake(linger_s=600.0)
    for _ in range(50):
        awake.working(True)
        awake.working(True)
        awake.working(False)
    eventually(lambda: stage.lines("began"))
    awake.close()
    assert (len(stage.lines("began")), len(stage.lines("ended"))) == (1, 1)


def test_on_battery_the_mac_may_sleep_and_on_mains_power_no_more(stage: Stage) -> None:
    stage.says.write_text(BATTERY)
    awake = stage.awake()
    awake.working(True)
    stage.says.write_text(MAINS)
    eventually(lambda: stage.lines("began"))
    stage.says.write_text(BATTERY)
    eventually(lambda: stage.lines("ended"))


def test_on_battery_it_stays_awake_where_that_was_asked_for(stage: Stage) -> None:
    stage.says.write_text(BATTERY)
    stage.awake(on_battery=True).working(True)
    eventually(lambda: stage.lines("began"))


def test_what_holds_off_sleep_and_was_killed_is_started_again(stage: Stage) -> None:
    stage.awake().working(True)
    ((_, pid, *_),) = eventually(lambda: stage.lines("began"))
    os.kill(int(pid), signal.SIGKILL)
    eventually(lambda: len(stage.lines("began")) == 2)


def test_without_a_caffeinate_work_goes_on_and_the_log_says_so_once(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    awake = stage.awake(caffeinate=["/no/such/program"])
    awake.working(True)
    eventually(lambda: "not kept from idle sleep" in caplog.text)
    awake.working(False)
    awake.working(True)
    awake.close()
    assert caplog.text.count("not kept from idle sleep") == 1


@pytest.mark.parametrize(
    ("said", "battery"), [(MAINS, False), (BATTERY, True), (UPS, False), (DESKTOP, False), ("", False)]
)
def test_the_battery_is_read_from_what_pmset_says(said: str, battery: bool) -> None:
    assert draws_from_battery(said) is battery


def test_where_pmset_does_not_answer_the_mac_is_taken_to_have_mains_power() -> None:
    assert on_battery(["/no/such/program"]) is False


def test_verify_sees_that_sleep_is_held_off_or_says_that_it_is_not(stage: Stage) -> None:
    stage.says.write_text('   pid 99(caffeinate): [0x1] 00:00:00 PreventUserIdleSystemSleep named: "x"\n')
    tried: dict[str, Any] = {"caffeinate": stage.caffeinate, "pmset": stage.pmset}
    assert try_power(**tried, iokit=Library).endswith('named: "x"; registered for notices of sleep')
    with pytest.raises(OSError, match="refused"):
        try_power(**tried, iokit=lambda: Library(root=0))
    stage.says.write_text("Assertion status system-wide:\n")
    with pytest.raises(OSError, match="lists none"):
        try_power(**tried, iokit=Library, tries=1)
    with pytest.raises(OSError, match="No such file"):
        try_power(caffeinate=stage.caffeinate, pmset=["/no/such/program"], iokit=Library)


# -- notices of sleep ------------------------------------------------------------------------------------------------


class Library:
    """Plays IOKit: messages are put in, acknowledgements come out."""

    common_modes = None

    def __init__(self, root: int = 7) -> None:
        self.messages: queue.Queue[tuple[int, int] | None] = queue.Queue()
        self.allowed: queue.Queue[tuple[int, int]] = queue.Queue()
        self.ended = threading.Event()
        self._root = root
        self._callback: Any = None

    def IORegisterForSystemPower(self, refcon: Any, port: Any, callback: Any, notifier: Any) -> int:  # noqa: N802
        self._callback = callback
        return self._root

    def IOAllowPowerChange(self, root: int, argument: int) -> int:  # noqa: N802
        self.allowed.put((root, argument))
        return 0

    def IODeregisterForSystemPower(self, notifier: Any) -> int:  # noqa: N802
        self.ended.set()
        return 0

    def CFRunLoopGetCurrent(self) -> int:  # noqa: N802
        return 1

    def CFRunLoopRun(self) -> None:  # noqa: N802
        while (message := self.messages.get()) is not None:
            self._callback(None, 0, *message)

    def CFRunLoopStop(self, loop: int) -> None:  # noqa: N802
        self.messages.put(None)

    def __getattr__(self, name: str) -> Any:
        return lambda *rest: 1


def test_before_the_system_sleeps_the_callback_runs_and_then_sleep_is_allowed() -> None:
    library, said = Library(), []
    notices = SleepNotices(library, lambda: said.append(library.allowed.qsize()))
    library.messages.put((WILL_SLEEP, 42))
    assert library.allowed.get(timeout=30) == (7, 42)
    assert said == [0]
    # Idle sleep is not refused, and is not sleep yet; other messages ask for nothing.
    library.messages.put((0xE0000300, 1))
    library.messages.put((CAN_SLEEP, 43))
    assert library.allowed.get(timeout=30) == (7, 43)
    assert said == [0]
    notices.close()
    assert library.ended.is_set()


def test_a_callback_that_fails_keeps_the_system_from_nothing(caplog: pytest.LogCaptureFixture) -> None:
    library = Library()
    notices = SleepNotices(library, lambda: [][0])
    library.messages.put((WILL_SLEEP, 42))
    assert library.allowed.get(timeout=30) == (7, 42)
    notices.close()
    assert "IndexError" in caplog.text


def test_a_system_that_registers_nobody_is_an_error() -> None:
    with pytest.raises(OSError, match="refused"):
        SleepNotices(Library(root=0), lambda: None)


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has an IOKit")
def test_off_a_mac_there_is_no_iokit() -> None:
    with pytest.raises(OSError, match="IOKit"):
        load_iokit()


# -- the worker's side -----------------------------------------------------------------------------------------------


def settings(**more: Any) -> WorkerSettings:
    return WorkerSettings(("redis://",), "embedding", "name", **more)


def test_off_a_mac_nothing_is_done_and_the_reason_is_said() -> None:
    power = open_power(settings(), system="linux")
    assert isinstance(power, NoPower)
    assert "only macOS is asked to stay awake" in power.words
    power.working(True)
    power.on_sleep(lambda: None)
    power.close()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "kept from idle sleep while jobs run, not on battery"),
        ({"stay_awake_on_battery": True}, "on battery too"),
        ({"allow_sleep": True}, "may fall asleep while jobs run (--allow-sleep)"),
    ],
)
def test_on_a_mac_what_holds_follows_the_settings(more: dict[str, bool], words: str) -> None:
    power = open_power(settings(**more), system="darwin")
    assert isinstance(power, MacPower)
    assert words in power.words
    power.close()


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has an IOKit")
def test_a_mac_whose_notices_cannot_be_heard_serves_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    power = open_power(settings(allow_sleep=True), system="darwin")
    power.on_sleep(lambda: None)
    power.working(True)
    power.close()
    assert "notices of sleep are not heard" in caplog.text


@pytest.mark.macos
@pytest.mark.skipif(sys.platform != "darwin", reason="needs a Mac")
def test_a_real_mac_holds_off_sleep_and_registers_for_notices() -> None:
    power = open_power(settings(stay_awake_on_battery=True))
    power.on_sleep(lambda: None)
    power.working(True)
    asked = ["pmset", "-g", "assertions"]
    eventually(lambda: "caffeinate" in subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    power.close()
