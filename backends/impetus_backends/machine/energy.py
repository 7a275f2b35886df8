"""What the chip has used, in joules: of all of it, for whatever it does, not of one process.

Three meters, each thin: on Linux the kernel's counters of Intel's and AMD's RAPL (`/sys/class/powercap`, which many
kernels let only root read); on macOS `zeus-apple-silicon` where it is installed, else the program `macmon`. Those of
macOS are unverified: no Mac has run them yet. Sources: the kernel's Documentation/power/powercap; the README of
zeus-apple-silicon 1.0 (`begin_window`, `end_window`, millijoules by part of the chip); that of macmon 0.7 (`macmon
pipe`, a JSON object a line with watts).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

POWERCAP = Path("/sys/class/powercap")
_SAMPLE_MS = 200
_WINDOW = "impetus"
_MOST_SILENT_S = 5.0
"""A program that says nothing for so long measures nothing."""


class Meter(Protocol):
    """`source`: who measures. `joules()`: used since the meter began; raises `OSError` where it can no longer tell."""

    source: str

    def joules(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Used:
    """What so many texts and tokens took."""

    joules: float
    texts: int
    tokens: int

    @property
    def per_1000_texts(self) -> float:
        return 1000 * self.joules / max(1, self.texts)

    @property
    def per_1000_tokens(self) -> float:
        return 1000 * self.joules / max(1, self.tokens)


class Reading:
    """What a meter says for as long as it can tell: None from then on, and where there is none. Nobody's work waits for
    it."""

    def __init__(self, meter: Meter | None) -> None:
        self._meter = meter

    def joules(self) -> float | None:
        try:
            return self._meter.joules() if self._meter is not None else None
        except OSError:
            self._meter = None
            return None


class RaplMeter:
    """`folder`: the kernel's, with a zone for each package. Raises `OSError` where none can be read."""

    source = "rapl"

    def __init__(self, folder: Path = POWERCAP) -> None:
        # `intel-rapl:0`, on AMD's processors too; `intel-rapl:0:1` is a part of it.
        zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._zones = [(zone / "energy_uj", _number(zone / "max_energy_range_uj")) for zone in zones]
        if not self._zones:
            raise OSError(f"{folder} has no counter of a processor's energy")
        self._last = [_number(counter) for counter, _ in self._zones]
        self._used_uj = 0

    def joules(self) -> float:
        for at, (counter, range_uj) in enumerate(self._zones):
            now = _number(counter)
            # It begins anew past its range.
            self._used_uj += now - self._last[at] if now >= self._last[at] else now - self._last[at] + range_uj
            self._last[at] = now
        return self._used_uj / 1e6


def _number(file: Path) -> int:
    """Raises `OSError` where there is none."""
    try:
        return int(file.read_text())
    except ValueError as error:
        raise OSError(f"{file}: {error}") from None


class ZeusMeter:
    """`monitor`: an `AppleEnergyMonitor`. Counts CPU, GPU, Neural Engine and memory, where the chip tells of them."""

    source = "zeus-apple-silicon"
    _PARTS = ("cpu_total_mj", "gpu_mj", "ane_mj", "dram_mj")

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor
        self._used_mj = 0.0
        monitor.begin_window(_WINDOW)

    def joules(self) -> float:
        try:
            used = self._monitor.end_window(_WINDOW)
            self._monitor.begin_window(_WINDOW)
        except RuntimeError as error:
            raise OSError(f"zeus-apple-silicon: {error}") from None
        self._used_mj += sum(getattr(used, part, None) or 0 for part in self._PARTS)
        return self._used_mj / 1e3


class MacmonMeter:
    """Adds up the watts that `macmon pipe` samples, in a thread; the program ends with its standard output's reader.

    Raises `OSError` where it cannot be started.
    """

    source = "macmon"

    def __init__(self, command: Sequence[str] = ("macmon",), clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used_j, self._watts = 0.0, 0.0
        self._at = self._heard_at = clock()
        self._changed = threading.Lock()
        self.heard = threading.Event()
        """Whether it has said anything yet."""
        self._process = subprocess.Popen(
            [*command, "pipe", "-i", str(_SAMPLE_MS)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        threading.Thread(target=self._read, name="macmon", daemon=True).start()

    def joules(self) -> float:
        with self._changed:
            if self._clock() - self._heard_at > _MOST_SILENT_S:
                raise OSError(f"macmon has said nothing for {_MOST_SILENT_S:g} s")
            self._count()
            return self._used_j

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _count(self) -> None:
        now = self._clock()
        self._used_j += self._watts * (now - self._at)
        self._at = now

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                try:
                    watts = float(json.loads(line)["all_power"])
                except (ValueError, KeyError, TypeError):
                    continue
                with self._changed:
                    self._count()
                    self._watts, self._heard_at = max(0.0, watts), self._at
                self.heard.set()


def open_meter(system: str = sys.platform, powercap: Path = POWERCAP) -> Meter | None:
    """What measures here; None where nothing does."""
    try:
        if system == "darwin":
            return _zeus() or (MacmonMeter() if shutil.which("macmon") else None)
        return RaplMeter(powercap)
    except OSError:
        return None


def _zeus() -> Meter | None:
    try:
        library: Any = import_module("zeus_apple_silicon")
        return ZeusMeter(library.AppleEnergyMonitor())
    except (ImportError, RuntimeError):
        return None
