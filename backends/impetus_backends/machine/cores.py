"""How many cores there are for work that gains nothing by two threads on one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")


def equal_cores(topology: Path = _TOPOLOGY) -> int:
    """The cores that this process may run on. 1 where the system does not say, and on a Mac, whose cores are of two
    kinds: of equal parts the slower ones would end last."""
    if sys.platform != "linux":
        return 1
    try:
        cores = {
            (topology / f"cpu{number}/topology/thread_siblings_list").read_text(encoding="ascii")
            for number in os.sched_getaffinity(0)
        }
    except (OSError, ValueError):
        return 1
    return len(cores)
