"""Finding the item that kills the engine, without ever failing an innocent one.

Most deaths have a cause outside: what the engine had begun at its first death runs again as before, and only
remembers it. What had been begun at a second one is suspect. Suspects run in halves with nothing beside them, so that
every further death halves the group that holds the culprit; an item that was alone in the engine at three deaths is
poison.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from ...leases.claims import DEATHS_ALONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@dataclass(eq=False, slots=True, kw_only=True)
class Witness:
    """An item that remembers the deaths of the engine that it met after the engine had begun it."""

    deaths: int = 0
    deaths_alone: int = 0
    """Those of them at which nothing else was in the engine."""


WitnessT = TypeVar("WitnessT", bound=Witness)


class Verdict(NamedTuple, Generic[WitnessT]):
    """What becomes of the items that a death met, those in quarantine aside."""

    again: list[WitnessT]
    """To run again as before."""
    poison: list[WitnessT]


class Quarantine(Generic[WitnessT]):
    """Groups of suspects, each of which waits to run with nothing beside it."""

    def __init__(self) -> None:
        self._groups: deque[list[WitnessT]] = deque()

    def __bool__(self) -> bool:
        return bool(self._groups)

    def __iter__(self) -> Iterator[WitnessT]:
        """Every item that waits."""
        return (item for group in self._groups for item in group)

    def after_death(self, begun: Sequence[WitnessT], *, alone: bool) -> Verdict[WitnessT]:
        """Judges what the engine had begun when it died, and keeps the suspects. `alone`: nothing else was in it."""
        again = [item for item in begun if item.deaths == 0]
        suspects = [item for item in begun if item.deaths > 0]
        for item in begun:
            item.deaths += 1
            item.deaths_alone += alone
        if alone and begun[0].deaths_alone >= DEATHS_ALONE:
            return Verdict([], list(begun))
        half = (len(suspects) + 1) // 2
        # Behind those that wait: these may be innocent, and should not wait for the engine to be started again.
        self._groups.extend(part for part in (suspects[:half], suspects[half:]) if part)
        return Verdict(again, [])

    def next_group(self) -> list[WitnessT]:
        """The next group to run, with nothing beside it."""
        return self._groups.popleft()

    def admit(self, group: list[WitnessT]) -> None:
        """The group comes as a suspect: it was in an engine at deaths of others' workers."""
        for item in group:
            item.deaths = max(item.deaths, 1)  # one more, and it is judged as those that met two here
        self._groups.append(group)

    def put_back(self, group: list[WitnessT]) -> None:
        """The group is the next to run, for the engine was ended before it had."""
        if group:
            self._groups.appendleft(group)

    def keep(self, is_wanted: Callable[[WitnessT], bool]) -> None:
        """Forgets all other items."""
        groups = ([item for item in group if is_wanted(item)] for group in self._groups)
        self._groups = deque(group for group in groups if group)
