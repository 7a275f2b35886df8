"""What a worker has to do with the machine's sleep. Thin, and unverified: no Mac has run it yet.

`StayAwake` holds off idle sleep while jobs run, by a `caffeinate` that ends with this process. `SleepNotices` hears
from IOKit that the system is about to sleep, and lets it when the callback has returned. Off macOS there is neither:
servers do not fall asleep by themselves, and on a laptop that does, the worker notices when it wakes.
Sources: caffeinate(8), pmset(1), Apple's Technical Q&A QA1340 and IOKit/pwr_mgt/IOPMLib.h.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .sleep_notices import SleepNotices, load_iokit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..settings import WorkerSettings

_END_S = 5.0
_log = logging.getLogger(__name__)


class Power(Protocol):
    """What the worker's loop says and hears of sleep. No method blocks or raises."""

    @property
    def words(self) -> str:
        """What holds here, in a sentence."""
        ...

    def working(self, busy: bool) -> None:
        """Whether jobs run now. May be said as often as one likes."""

    def on_sleep(self, callback: Callable[[], None]) -> None:
        """Calls it, in a thread of its own, when the system is about to sleep, which waits for it up to 30 s."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class NoPower:
    """Where nothing is to be done about sleep, and why."""

    words: str

    def working(self, busy: bool) -> None:
        return

    def on_sleep(self, callback: Callable[[], None]) -> None:
        return

    def close(self) -> None:
        return


class MacPower:
    """`Power` on a Mac."""

    def __init__(self, awake: StayAwake | None, words: str) -> None:
        """`awake` is None where the machine may sleep."""
        self.words = words
        self._awake = awake
        self._notices: SleepNotices | None = None

    def working(self, busy: bool) -> None:
        if self._awake is not None:
            self._awake.working(busy)

    def on_sleep(self, callback: Callable[[], None]) -> None:
        try:
            self._notices = SleepNotices(load_iokit(), callback)
        except OSError as error:
            _log.warning("this Mac's notices of sleep are not heard: %s", error)

    def close(self) -> None:
        if self._awake is not None:
            self._awake.close()
        if self._notices is not None:
            self._notices.close()


def sleep_policy(*, allow_sleep: bool, stay_awake_on_battery: bool, system: str = sys.platform) -> str:
    """What a worker does here about sleep, in a sentence."""
    if system != "darwin":
        return "idle sleep is left to this system: only macOS is asked to stay awake"
    if allow_sleep:
        return "this Mac may fall asleep while jobs run (--allow-sleep)"
    on_battery = "on battery too (--stay-awake-on-battery)" if stay_awake_on_battery else "not on battery"
    return f"this Mac is kept from idle sleep while jobs run, {on_battery}; a lid that closes still wins (unverified)"


def open_power(settings: WorkerSettings, *, system: str = sys.platform) -> Power:
    """What fits this system and these settings."""
    words = sleep_policy(
        allow_sleep=settings.allow_sleep, stay_awake_on_battery=settings.stay_awake_on_battery, system=system
    )
    if system != "darwin":
        return NoPower(words)
    return MacPower(None if settings.allow_sleep else StayAwake(on_battery=settings.stay_awake_on_battery), words)


class StayAwake:
    """Holds off idle sleep while jobs run, and for `linger_s` after, so that job upon job is one spell of work.

    A thread of its own starts and ends the program that does it, and looks at the battery now and then: the worker's
    loop only says whether it is busy.
    """

    def __init__(
        self,
        *,
        on_battery: bool = False,
        caffeinate: Sequence[str] = ("/usr/bin/caffeinate",),
        pmset: Sequence[str] = ("/usr/bin/pmset",),
        linger_s: float = 30.0,
        look_s: float = 60.0,
    ) -> None:
        """`caffeinate` and `pmset` are the programs of these names; `look_s`: how often the battery is looked at."""
        self._on_battery = on_battery
        self._caffeinate = caffeinate
        self._pmset = pmset
        self._linger_s = linger_s
        self._look_s = look_s
        self._busy = self._closed = False
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def working(self, busy: bool) -> None:
        if busy == self._busy:
            return
        with self._changed:
            self._busy = busy
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="stay-awake", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(2 * _END_S)

    def _run(self) -> None:
        try:
            while not self._closed:
                if self._wanted():
                    self._hold()
                else:
                    self._release()
                with self._changed:
                    # Woken by a change; while it holds, the battery is looked at again in time.
                    self._changed.wait_for(lambda: self._closed or not self._busy, self._look_s if self._busy else 0)
                    if not self._busy:
                        lingering = self._linger_s if self._process is not None else None
                        self._changed.wait_for(lambda: self._closed or self._busy, lingering)
        except OSError as error:
            _log.warning("this Mac is not kept from idle sleep: %s", error)
        finally:
            self._release()

    def _wanted(self) -> bool:
        return self._busy and (self._on_battery or not on_battery(self._pmset))

    def _hold(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        # -w: it ends with us, however we end.
        self._process = subprocess.Popen(
            [*self._caffeinate, "-i", "-w", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _release(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def try_power(
    *,
    caffeinate: Sequence[str] = ("/usr/bin/caffeinate",),
    pmset: Sequence[str] = ("/usr/bin/pmset",),
    iokit: Callable[[], object] = load_iokit,
    tries: int = 20,
) -> str:
    """Holds off idle sleep for a moment, registers for its notices, and asks this Mac whether it sees that.

    What was seen, in a sentence; raises `OSError` with what was not.
    """
    awake = StayAwake(on_battery=True, caffeinate=caffeinate, pmset=pmset, linger_s=0.0)
    try:
        awake.working(True)
        for _ in range(tries):
            seen = [line.strip() for line in ask([*pmset, "-g", "assertions"]).splitlines() if "(caffeinate)" in line]
            if seen:
                break
            time.sleep(0.25)
        else:
            raise OSError("caffeinate was started, and `pmset -g assertions` lists none")
    finally:
        awake.close()
    SleepNotices(iokit(), lambda: None).close()
    return f"{seen[0]}; registered for notices of sleep"


def on_battery(pmset: Sequence[str] = ("/usr/bin/pmset",)) -> bool:
    """Whether this Mac draws its power from a battery; False where `pmset` does not say."""
    try:
        return draws_from_battery(ask([*pmset, "-g", "batt"]))
    except OSError:
        return False


def ask(command: Sequence[str]) -> str:
    """What it prints. Raises `OSError` where it does not answer."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=10, check=False
        ).stdout
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{error}") from None


def draws_from_battery(said: str) -> bool:
    """Reads the first line of `pmset -g batt`: "Now drawing from 'Battery Power'", or 'AC Power', or 'UPS Power'."""
    return any("drawing from" in line and "'Battery Power'" in line for line in said.splitlines()[:1])
