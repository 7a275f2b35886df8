"""What a scenario comes to on both sides, held against each other."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .sides import Ours, Side, Stock

T = TypeVar("T")


class Near:
    """Seconds until something ends that began within the last `since_s`: they equal any others within 5 of them, and
    what may have gone by since.
    """

    def __init__(self, seconds: float, since_s: float = 0.0) -> None:
        self.seconds = seconds
        self.since_s = since_s

    def __eq__(self, other: object) -> bool:
        theirs = other if isinstance(other, Near) else Near(other) if isinstance(other, (int, float)) else None
        if theirs is None:
            return False
        return abs(self.seconds - theirs.seconds) <= 5 + max(self.since_s, theirs.since_s)

    def __hash__(self) -> int:
        raise TypeError("equality within a tolerance allows no hash")

    def __repr__(self) -> str:
        return f"~{self.seconds:.0f} s"


class Both:
    def __init__(self, ours: Ours, stock: Stock) -> None:
        self.ours, self.stock = ours, stock

    def agree(self, scenario: Callable[[Side], T]) -> T:
        """What the scenario comes to on both sides."""
        self.stock.began = time.monotonic()
        theirs = scenario(self.stock)
        self.ours.began = time.monotonic()
        ours = scenario(self.ours)
        different = "\n".join(differences(ours, theirs))
        assert not different, different
        return ours


def differences(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    """One line for each place where they differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted({*ours, *theirs}, key=str):
            yield from differences(ours.get(key), theirs.get(key), f"{where}/{key}")
    elif isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        for position, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(*pair, f"{where}/{position}")
    elif ours != theirs:
        yield f"{where}: ours {ours!r:.200}, RQ's {theirs!r:.200}"
