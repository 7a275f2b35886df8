"""What a machine's battery and heat say to a worker: whether to spare energy, and whether to take bulk at all.

Asked with programs of macOS, unverified as no Mac has run it yet, and read from `/sys/class/power_supply` on Linux.
What does not answer says nothing: then the machine counts as cool and on mains. Sources: pmset(1); notifyutil(1) and
libkern/OSThermalNotification.h for the levels of thermal pressure; the kernel's ABI/testing/sysfs-class-power.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .power import ask, draws_from_battery

if TYPE_CHECKING:
    from collections.abc import Callable

POWER_SUPPLY = Path("/sys/class/power_supply")
_THERMAL_PRESSURE = "com.apple.system.thermalpressurelevel"
_HEAVY = 2
"""Levels of thermal pressure: 0 nominal, 1 moderate, 2 heavy, 3 trapping, 4 sleeping."""
_CHARGE = re.compile(r"\t(\d{1,3})%;")
_LOOK_S = 30.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Conditions:
    on_battery: bool = False
    charge_percent: int | None = None
    thermal_level: int = 0

    @property
    def has_to_spare(self) -> bool:
        """Whether there is power for what nobody waits for."""
        return not self.on_battery and self.thermal_level < _HEAVY

    def reason_against_bulk(self, least_charge_percent: int) -> str | None:
        """Why no bulk should be taken, in a few words; None where it may be."""
        if self.thermal_level >= _HEAVY:
            return f"this machine is hot (thermal pressure {self.thermal_level})"
        if self.on_battery and self.charge_percent is not None and self.charge_percent < least_charge_percent:
            return f"on battery at {self.charge_percent} %, less than {least_charge_percent} %"
        return None


def of_macos(battery: str, thermal: str) -> Conditions:
    """`battery`: what `pmset -g batt` says; `thermal`: what `notifyutil -g` does, a name and a number."""
    charge = _CHARGE.search(battery)
    name, _, level = thermal.strip().rpartition(" ")
    known = name == _THERMAL_PRESSURE and level.isascii() and level.isdigit() and len(level) < 4
    return Conditions(draws_from_battery(battery), int(charge[1]) if charge else None, int(level) if known else 0)


def of_linux(folder: Path = POWER_SUPPLY) -> Conditions:
    """On battery is who has one that discharges."""
    for battery in sorted(folder.glob("*")):
        if _said(battery / "type") == "Battery" and _said(battery / "status") == "Discharging":
            charge = _said(battery / "capacity")
            return Conditions(True, int(charge) if charge.isascii() and charge.isdigit() else None)
    return Conditions()


def _said(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


def look(system: str = sys.platform) -> Conditions:
    """Those of this machine now."""
    if system != "darwin":
        return of_linux()
    return of_macos(_answer("/usr/bin/pmset", "-g", "batt"), _answer("/usr/bin/notifyutil", "-g", _THERMAL_PRESSURE))


def _answer(*command: str) -> str:
    try:
        return ask(command)
    except OSError:
        return ""


class Watch:
    """Looks at the conditions now and then, whenever it is asked; one thread asks, and others may read `against_bulk`.

    `prefer`: `settings.PREFERENCES`.
    """

    def __init__(
        self,
        prefer: str,
        least_charge_percent: int,
        look: Callable[[], Conditions] = look,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prefer, self._least_charge_percent = prefer, least_charge_percent
        self._look, self._clock = look, clock
        self._conditions = Conditions()
        self._look_at = clock()
        self.against_bulk: str | None = None
        """Why this worker takes no bulk now."""
        self.has_to_spare = False
        """Whether there is power for what nobody waits for; not before the first look."""

    def preference(self) -> Literal["energy", "speed"]:
        """What the worker goes by now. May take a moment."""
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + _LOOK_S
            self._conditions = self._look()
            self.has_to_spare = self._conditions.has_to_spare
            self._judge_bulk()
        if self._prefer == "auto":
            return "energy" if self._conditions.on_battery else "speed"
        return "energy" if self._prefer == "energy" else "speed"

    def _judge_bulk(self) -> None:
        why = self._conditions.reason_against_bulk(self._least_charge_percent)
        if (why is None) != (self.against_bulk is None):
            _log.warning("%s", f"no bulk is taken: {why}" if why else "bulk is taken again")
        self.against_bulk = why
