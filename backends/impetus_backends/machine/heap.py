"""What the C library does with memory that was freed. Of glibc (mallopt(3), malloc_trim(3)); elsewhere nothing is done.

glibc gives large pieces back to the system at once. What a batch computes with takes some thousand pages, and the next
batch would have the system find and clear as many again.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 256 * 1024 * 1024
_LARGEST_BYTES = 32 * 1024 * 1024
"""Of a piece that is kept; larger ones are seldom alike. glibc itself goes no further when it learns."""


def keep() -> None:
    """From now on this process keeps up to 256 MiB of what it frees, and threads that begin from then on share it."""
    if (library := _glibc()) is not None:
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def give_back() -> None:
    """Gives what is kept back to the system."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        return None
    return ctypes.CDLL(None)
