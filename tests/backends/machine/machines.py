"""Machines whose raw answers are in tests/data/machines, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from impetus_backends.machine.hardware import Hardware, read_machine
from tests.paths import DATA

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = DATA / "machines"
NAMES = (
    "m1", "m1-ultra", "m2-pro", "m3-max", "m4", "m4-max", "m5", "m5-pro", "m5-max", "m5-ultra", "m6",
    "intel", "vm", "rosetta", "linux",
)  # fmt: skip


def machine_file(name: str) -> Path:
    return FOLDER / f"{name}.json"


def machine(name: str) -> Hardware:
    return read_machine(machine_file(name))


def nothing_missing(backend: str) -> None:
    return None
