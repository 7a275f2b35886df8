"""IOKit's notices that the system is about to sleep, heard by a thread of its own. Unverified: no Mac has run it yet.

Every notice must be acknowledged, or the system waits 30 s for us. Sources: Apple's Technical Q&A QA1340,
IOKit/IOMessage.h, IOKit/pwr_mgt/IOPMLib.h.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

CAN_SLEEP, WILL_SLEEP = 0xE0000270, 0xE0000280
"""kIOMessageCanSystemSleep (idle sleep, may be refused) and kIOMessageSystemWillSleep (it is coming)."""
_FRAMEWORKS = "/System/Library/Frameworks"
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
"""IOServiceInterestCallback: (refcon, service, message, argument)."""
_ANSWER_S = 10.0
_log = logging.getLogger(__name__)


class IOKit:
    """The functions that are needed, of two frameworks."""

    def __init__(self, iokit: Any, core: Any) -> None:
        pointer, port = ctypes.c_void_p, ctypes.c_uint32
        self.common_modes = ctypes.c_void_p.in_dll(core, "kCFRunLoopCommonModes")
        for library, name, result, arguments in (
            (iokit, "IORegisterForSystemPower", port, [pointer, pointer, _CALLBACK, pointer]),
            (iokit, "IOAllowPowerChange", ctypes.c_int, [port, ctypes.c_long]),
            (iokit, "IODeregisterForSystemPower", ctypes.c_int, [pointer]),
            (iokit, "IONotificationPortGetRunLoopSource", pointer, [pointer]),
            (iokit, "IONotificationPortDestroy", None, [pointer]),
            (core, "CFRunLoopGetCurrent", pointer, []),
            (core, "CFRunLoopAddSource", None, [pointer, pointer, pointer]),
            (core, "CFRunLoopRun", None, []),
            (core, "CFRunLoopStop", None, [pointer]),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)


def load_iokit() -> IOKit:
    """Raises `OSError` where this is no Mac, or not one as we know them."""
    try:
        return IOKit(
            ctypes.CDLL(f"{_FRAMEWORKS}/IOKit.framework/IOKit"),
            ctypes.CDLL(f"{_FRAMEWORKS}/CoreFoundation.framework/CoreFoundation"),
        )
    except (AttributeError, ValueError) as error:
        raise OSError(f"IOKit lacks something: {error}") from error


class SleepNotices:
    """Calls `callback` before the system sleeps, and lets it sleep when that has returned, whatever came of it."""

    def __init__(self, system: Any, callback: Callable[[], None]) -> None:
        """`system` is an `IOKit`, or plays one. Raises `OSError` where it does not register us."""
        self._system = system
        self._callback = callback
        self._root = 0
        self._loop: Any = None
        self._ready = threading.Event()
        self._hear_c = _CALLBACK(self._hear)  # held: C does not
        self._thread = threading.Thread(target=self._run, name="sleep-notices", daemon=True)
        self._thread.start()
        self._ready.wait(_ANSWER_S)
        if not self._loop:
            raise OSError("IORegisterForSystemPower refused, or did not answer")

    def close(self) -> None:
        self._system.CFRunLoopStop(self._loop)
        self._thread.join(5)

    def _run(self) -> None:
        system, port, notifier = self._system, ctypes.c_void_p(), ctypes.c_uint32()
        try:
            self._root = system.IORegisterForSystemPower(None, ctypes.byref(port), self._hear_c, ctypes.byref(notifier))
            if self._root:
                self._loop = system.CFRunLoopGetCurrent()
                source = system.IONotificationPortGetRunLoopSource(port)
                system.CFRunLoopAddSource(self._loop, source, system.common_modes)
        finally:
            self._ready.set()
        if self._root:
            system.CFRunLoopRun()
            system.IODeregisterForSystemPower(ctypes.byref(notifier))
            system.IONotificationPortDestroy(port)

    def _hear(self, refcon: Any, service: int, message: int, argument: int | None) -> None:
        if message not in (CAN_SLEEP, WILL_SLEEP):
            return
        try:
            if message == WILL_SLEEP:
                self._callback()
        except Exception:  # noqa: BLE001 - whatever it raises, the system is not to wait for it
            _log.exception("on the way to sleep")
        finally:
            self._system.IOAllowPowerChange(self._root, argument or 0)
