"""Finding the item that kills the engine, without ever failing an innocent one.

What was in flight when the engine died is suspect. Suspects run again in halves with nothing beside them, so that
every further death halves the group that holds the culprit; an item that was alone in flight at three deaths is
poison. A kill from outside only costs its items a second run.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

ItemT = TypeVar("ItemT")
DEATHS_ALONE = 3


class Quarantine(Generic[ItemT]):
    """Groups of suspects that wait to run alone. Items are told apart by identity."""

    def __init__(self) -> None:
        self._groups: deque[list[ItemT]] = deque()
        self._deaths_alone: Counter[int] = Counter()

    def __bool__(self) -> bool:
        return bool(self._groups)

    def after_death(self, in_flight: list[list[ItemT]]) -> list[ItemT]:
        """Takes in the groups that were in flight at a death; returns the items now known to be poison."""
        poison: list[ItemT] = []
        alone = len(in_flight) == 1 and len(in_flight[0]) == 1
        for group in reversed(in_flight):
            if alone:
                self._deaths_alone[id(group[0])] += 1
            if alone and self._deaths_alone[id(group[0])] >= DEATHS_ALONE:
                del self._deaths_alone[id(group[0])]
                poison.append(group[0])
            else:
                half = (len(group) + 1) // 2
                self._groups.extendleft(part for part in (group[half:], group[:half]) if part)
        return poison

    def next_group(self) -> list[ItemT]:
        """The next group to run, with nothing beside it."""
        return self._groups.popleft()

    def items(self) -> Iterator[ItemT]:
        """Every item that waits."""
        return (item for group in self._groups for item in group)

    def cleared(self, item: ItemT) -> None:
        """The item ended, one way or another: its identity may be another's next."""
        self._deaths_alone.pop(id(item), None)

    def discard(self, items: list[ItemT]) -> None:
        """Forgets items that are no longer wanted."""
        gone = {id(item) for item in items}
        groups = ([item for item in group if id(item) not in gone] for group in self._groups)
        self._groups = deque(group for group in groups if group)
        for item in items:
            self.cleared(item)
