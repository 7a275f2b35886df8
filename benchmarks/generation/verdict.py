"""One line of the bench's last table: what was asked for, and what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Verdict:
    what: str
    model: str
    asked: str
    seen: str
    kept: bool

    def row(self) -> dict[str, Any]:
        return {
            "what": self.what, "model": self.model, "asked": self.asked, "seen": self.seen,
            "": "kept" if self.kept else "NOT KEPT",
        }  # fmt: skip
