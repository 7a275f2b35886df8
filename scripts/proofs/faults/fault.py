"""What a fault is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.proofs.faults.scene import Scene


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of misfortune."""

    name: str
    says: str
    """In a line."""
    strike: Callable[[Scene], bool]
    """Breaks something, and sees to it that it is whole again later. False where there was nothing to break."""
    weight: int = 2
    """How often it strikes, against the others; 0: only where it is asked for by name."""
