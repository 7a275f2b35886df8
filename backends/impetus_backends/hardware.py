"""What this machine is, as far as choosing a backend needs it. Probes only; decides nothing.

Labels on Apple hardware come from sysctl: `machdep.cpu.brand_string`, `hw.model`, `hw.memsize`,
`sysctl.proc_translated` (Rosetta), `kern.hv_vmm_present` (a virtual machine). Not yet run on a Mac.
"""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SYSCTL_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Hardware:
    system: str
    """`Darwin` or `Linux`."""
    machine: str
    """`arm64`, `x86_64`, `aarch64`."""
    chip: str
    cores: int
    memory_bytes: int
    rosetta: bool = False
    """An x86 Python on Apple silicon: neither Core ML's Neural Engine nor MLX is to be had."""
    virtual: bool = False

    @property
    def apple_silicon(self) -> bool:
        return self.system == "Darwin" and self.machine == "arm64" and not self.rosetta


def sysctl(name: str) -> str:
    """One value of macOS's sysctl, or nothing where it has none."""
    try:
        answer = subprocess.run(
            ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=_SYSCTL_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()


def detect(read: Callable[[str], str] = sysctl) -> Hardware:
    """This machine. `read` answers for a sysctl name."""
    system, machine = platform.system(), platform.machine()
    cores = os.cpu_count() or 1
    if system != "Darwin":
        return Hardware(system, machine, _linux_chip() or machine, cores, _linux_memory())
    return Hardware(
        system,
        machine,
        chip=read("machdep.cpu.brand_string") or machine,
        cores=cores,
        memory_bytes=int(read("hw.memsize") or 0),
        rosetta=read("sysctl.proc_translated") == "1",
        virtual=read("kern.hv_vmm_present") == "1",
    )


def _linux_chip() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return ""


def _linux_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 0
