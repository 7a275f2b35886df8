"""How much memory this process has that the system cannot take back without ending it, and how near that is to a limit.

On a Mac that is its physical footprint, by which the system chooses whom to end, and beside it what MLX holds for the
GPU: `task_info(3)` of mach/task_info.h, flavour TASK_VM_INFO. Unverified, as no Mac has run it yet. On Linux it is what
of the process is in memory and in no file (proc_pid_status(5)), and what MLX holds on a GPU of its own.
"""

from __future__ import annotations

import ctypes
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

NEAR = 0.9
"""Of the limit: from there on models are unloaded that nobody uses now."""
LOOK_S = 2.0
_STATUS = Path("/proc/self/status")
_COUNTED = ("RssAnon:", "RssShmem:", "VmSwap:")
_TASK_VM_INFO = 22
_FOOTPRINT_AT = 144
"""Of `phys_footprint` in `task_vm_info`, in bytes: behind a size, two integers and sixteen more sizes."""
_SYSTEM_LIBRARY = "/usr/lib/libSystem.dylib"


@dataclass(frozen=True, slots=True)
class Use:
    used_bytes: int
    limit_bytes: int

    @property
    def near(self) -> bool:
        return self.used_bytes >= NEAR * self.limit_bytes

    def __str__(self) -> str:
        return f"{self.used_bytes / 2**30:.2f} GiB of the {self.limit_bytes / 2**30:.2f} GiB allowed"


def used_bytes(system: str = sys.platform) -> int | None:
    """What this process has now; None where the system does not say."""
    own = _of_macos() if system == "darwin" else of_linux()
    return None if own is None else own + _of_mlx()


def of_linux(status: Path = _STATUS) -> int | None:
    try:
        lines = [line.split() for line in status.read_text(encoding="ascii").splitlines()]
        return 1024 * sum(int(line[1]) for line in lines if line and line[0] in _COUNTED)
    except (OSError, ValueError, IndexError):
        return None


def _of_macos(library: Any = None) -> int | None:
    try:
        library = library or ctypes.CDLL(_SYSTEM_LIBRARY)
        told = ctypes.create_string_buffer(4 * 256)
        count = ctypes.c_uint(len(told) // 4)
        if library.task_info(_task(library), _TASK_VM_INFO, told, ctypes.byref(count)) != 0:
            return None
    except (OSError, ValueError, AttributeError):
        return None
    return footprint_in(told.raw[: 4 * count.value])


def _task(library: Any) -> ctypes.c_uint:
    return ctypes.c_uint.in_dll(library, "mach_task_self_")


def footprint_in(task_vm_info: bytes) -> int | None:
    """None in what an older system filled in."""
    field = task_vm_info[_FOOTPRINT_AT : _FOOTPRINT_AT + 8]
    return int.from_bytes(field, sys.byteorder) if len(field) == 8 else None


def _of_mlx() -> int:
    """What it holds on a GPU; on a CPU that is the process's own memory."""
    mx = sys.modules.get("mlx.core")
    return int(mx.get_active_memory()) if mx is not None and mx.default_device() != mx.cpu else 0


class MemoryWatch:
    """Looks at this process's memory now and then, whenever it is asked. `limit_bytes`: what it may have."""

    def __init__(
        self,
        limit_bytes: int | None,
        used: Callable[[], int | None] = used_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit_bytes, self._used, self._clock = limit_bytes, used, clock
        self._look_at = clock()

    def hurry(self) -> None:
        """The next look is not to wait: the process has more now."""
        self._look_at = self._clock()

    def look(self) -> Use | None:
        """What it has, once every `LOOK_S`; None in between, and where nothing is known."""
        if self._limit_bytes is None or self._clock() < self._look_at:
            return None
        self._look_at = self._clock() + LOOK_S
        used = self._used()
        return None if used is None else Use(used, self._limit_bytes)
