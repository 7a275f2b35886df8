"""The questions put to a machine, and their raw answers: asked here, or read from a file that another machine wrote.

Decides nothing; `hardware` reads the answers. A probe answers with plain JSON data, with None where it cannot be asked
(its package is not installed), or raises `ProbeError`. What may hang or crash runs in a child process with a time
limit: sysctl, and MLX and Core ML, whose device listings go into Apple's frameworks. Not yet run on a Mac.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

from impetus_backends.errors import BackendError

if TYPE_CHECKING:
    from pathlib import Path

Probe: TypeAlias = Callable[[], Any]
Probes: TypeAlias = Mapping[str, Probe]

SYSCTL_TIMEOUT_S = 5.0
LIBRARY_TIMEOUT_S = 30.0
"""coremltools alone takes up to five seconds to import."""

SYSCTL_NAMES = (
    "machdep.cpu.brand_string",
    "hw.model",
    "hw.memsize",
    "hw.perflevel0.physicalcpu",
    "hw.perflevel1.physicalcpu",
    "kern.osproductversion",
    "kern.osversion",
    "kern.hv_vmm_present",
    "sysctl.proc_translated",
)

# The platform tag of the wheel is the only sign of how MLX was built: that of macOS 26 targets 26.2.
# https://github.com/ml-explore/mlx/pull/3622
_ASK_MLX = """
import json
from importlib import metadata
import mlx.core as mx
tag = None
for package in ("mlx-metal", "mlx"):
    try:
        wheel = metadata.distribution(package).read_text("WHEEL") or ""
    except metadata.PackageNotFoundError:
        continue
    tag = next((line.rpartition("-")[2] for line in wheel.splitlines() if line.startswith("Tag:")), None)
    break
print(json.dumps({"device": mx.device_info(), "wheel": tag}))
"""
_ASK_COREML = """
import json, logging
logging.getLogger("coremltools").setLevel(logging.ERROR)
from coremltools.models.compute_device import MLComputeDevice
found = MLComputeDevice.get_all_compute_devices()
cores = [getattr(device, "total_core_count", None) for device in found]
print(json.dumps({"devices": [type(device).__name__ for device in found],
                  "neural_engine_cores": next((count for count in cores if count), None)}))
"""


class ProbeError(BackendError):
    """A probe got no answer, in one sentence that says why."""


def cheap_probes() -> dict[str, Probe]:
    """The probes that answer within milliseconds: enough to name the machine."""
    return {"platform": _ask_platform, "sysctl": _ask_sysctl, "linux": _ask_linux}


def all_probes() -> dict[str, Probe]:
    """Every probe. On a Mac those of MLX and Core ML take a second or more, and are asked of nothing else."""
    return {
        **cheap_probes(),
        "mlx": lambda: _ask_library("mlx", _ASK_MLX),
        "coreml": lambda: _ask_library("coremltools", _ASK_COREML),
    }


def recorded(file: Path) -> dict[str, Probe]:
    """Probes that answer as another machine did; raises `ProbeError` for a file that is no such record."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        answers, problems = dict(content["answers"]), dict(content.get("problems", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProbeError(
            f"{file} is no description of a machine ({type(error).__name__}: {error}); "
            "`impetus-worker doctor --record FILE` writes one"
        ) from error

    def again(name: str) -> Probe:
        def ask() -> Any:
            if name in problems:
                raise ProbeError(str(problems[name]))
            return answers[name]

        return ask

    return {name: again(name) for name in {*answers, *problems}}


def ask_child(command: list[str], timeout_s: float) -> str:
    """What a child process prints; raises `ProbeError` when it cannot start, dies or takes longer than it may.

    It leads a group of its own, so that nothing it started outlives it.
    """
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise ProbeError(f"{command[0]} cannot be run: {error.strerror or error}") from None
    with child:
        try:
            said, complained = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            raise ProbeError(f"no answer within {timeout_s:g} s") from None
    # sysctl knows some of its names only on some machines, and ends with 1 for the others.
    if child.returncode < 0 or (child.returncode and not said.strip()):
        last = (complained.strip().splitlines() or ["it said nothing"])[-1]
        raise ProbeError(f"ended with status {child.returncode}: {last[:200]}")
    return said


def _ask_platform() -> dict[str, Any]:
    return {"system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count() or 1}


def _ask_sysctl() -> dict[str, str]:
    lines = ask_child(["/usr/sbin/sysctl", *SYSCTL_NAMES], SYSCTL_TIMEOUT_S).splitlines()
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


def _ask_linux() -> dict[str, Any]:
    with open("/proc/cpuinfo", errors="replace") as lines:
        chip = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {"chip": chip, "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}


def _ask_library(package: str, program: str) -> Any:
    if find_spec(package) is None:
        return None
    said = ask_child([sys.executable, "-c", program], LIBRARY_TIMEOUT_S).strip()
    try:
        return json.loads(said.splitlines()[-1])
    except (IndexError, ValueError):
        raise ProbeError(f"an answer that is no JSON: {said[-200:]!r}") from None
