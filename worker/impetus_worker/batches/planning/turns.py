"""Which generation goes next.

Those that somebody waits for go first. Of bulk jobs those that begin as the one before did go next, so that the engine
reads their beginning once; none is passed by more than a bounded number of later ones.

While jobs are suspected of killing the engine, groups take turns: one of suspects, with nothing beside it, and one of
all interactive jobs that wait when it begins. Other bulk jobs wait until no more are suspected.
"""

from __future__ import annotations

from collections import deque
from itertools import chain
from typing import TYPE_CHECKING

from .quarantine import Quarantine, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..open_generation import OpenGeneration

_MOST_PASSED = 32
"""A bulk job is passed by no more that came later, while it is held."""


class Turns:
    """The generations that are not in the engine."""

    def __init__(self) -> None:
        self._waiting: deque[OpenGeneration] = deque()
        self._group: deque[OpenGeneration] | None = None
        """What is left to send of the group whose turn it is; none where all may run together."""
        self._group_is_suspect = False
        self._urgent_suspects: Quarantine[OpenGeneration] = Quarantine()
        self._bulk_suspects: Quarantine[OpenGeneration] = Quarantine()
        self._turns: deque[Quarantine[OpenGeneration] | None] = deque(
            [None, self._urgent_suspects, self._bulk_suspects]
        )
        """While there are suspects: whose turn is next; None is that of the interactive jobs that wait."""
        self._last_beginning: int | None = None
        """Of the bulk job that went last."""

    def __iter__(self) -> Iterator[OpenGeneration]:
        return chain(self._group or (), self._waiting, self._urgent_suspects, self._bulk_suspects)

    @property
    def waiting_bulk(self) -> int:
        """How many bulk jobs wait that nobody suspects."""
        return sum(not owner.urgent for owner in self._waiting)

    def add(self, owner: OpenGeneration) -> None:
        if owner.job.suspect:
            (self._urgent_suspects if owner.urgent else self._bulk_suspects).admit([owner])
        else:
            self._waiting.append(owner)

    def has_suspects(self, *, engine_busy: bool) -> bool:
        """Whether any job is suspected, waiting or in the engine."""
        has_turn = self._group is not None and self._group_is_suspect and (engine_busy or bool(self._group))
        return has_turn or bool(self._urgent_suspects or self._bulk_suspects)

    def next(self, *, engine_busy: bool, has_room_for_bulk: Callable[[], bool]) -> OpenGeneration | None:
        """The one that goes now, which is held here no more; None where none may."""
        if self._group is not None and not self._group and not engine_busy:
            self._group = None
        if self._group is None and self.has_suspects(engine_busy=engine_busy):
            if engine_busy:
                return self._next_before_suspects()
            self._group = self._next_group()
        if self._group is not None:
            return self._group.popleft() if self._group else None
        owner = self._first_urgent()
        if owner is None and self._waiting and has_room_for_bulk():
            owner = self._chosen_bulk()
        if owner is not None:
            self._waiting.remove(owner)
        return owner

    def _first_urgent(self) -> OpenGeneration | None:
        return next((owner for owner in self._waiting if owner.urgent), None)

    def _chosen_bulk(self) -> OpenGeneration:
        """The oldest, or one that begins as the last one did."""
        chosen = oldest = self._waiting[0]
        if oldest.passed < _MOST_PASSED:
            chosen = next((each for each in self._waiting if each.beginning == self._last_beginning), oldest)
        for each in self._waiting:
            if each is chosen:
                break
            each.passed += 1
        self._last_beginning = chosen.beginning
        return chosen

    def _next_before_suspects(self) -> OpenGeneration | None:
        """Suspects came while others run: these are let end, and bulk ones hold up nobody who waits."""
        urgent = self._first_urgent()
        if self._urgent_suspects or urgent is None:
            return None
        self._waiting.remove(urgent)
        return urgent

    def _next_group(self) -> deque[OpenGeneration] | None:
        for turn in list(self._turns):
            group = self._take_urgent() if turn is None else turn.next_group() if turn else []
            if group:
                self._turns.remove(turn)
                self._turns.append(turn)
                self._group_is_suspect = turn is not None
                return deque(group)
        return None

    def _take_urgent(self) -> list[OpenGeneration]:
        urgent = [owner for owner in self._waiting if owner.urgent]
        self._waiting = deque(owner for owner in self._waiting if not owner.urgent)
        return urgent

    def keep(self, is_wanted: Callable[[OpenGeneration], bool]) -> None:
        """Forgets all others."""
        self._waiting = deque(filter(is_wanted, self._waiting))
        if self._group is not None:
            self._group = deque(filter(is_wanted, self._group))
        self._urgent_suspects.keep(is_wanted)
        self._bulk_suspects.keep(is_wanted)

    def after_death(self, begun: Sequence[OpenGeneration], *, alone: bool) -> Verdict[OpenGeneration]:
        """Judges what the engine had begun when it died, and keeps the suspects. `alone`: nothing else was in it."""
        verdict: Verdict[OpenGeneration] = Verdict([], [])
        for quarantine, urgent in ((self._urgent_suspects, True), (self._bulk_suspects, False)):
            if part := [owner for owner in begun if owner.urgent is urgent]:
                judged = quarantine.after_death(part, alone=alone)
                verdict = Verdict(verdict.again + judged.again, verdict.poison + judged.poison)
        return verdict

    def put_back(self, owners: Sequence[OpenGeneration]) -> None:
        """They run again first; what remains of a group of suspects waits for its next turn."""
        if self._group is None:
            self._waiting.extendleft(reversed(owners))
            return
        group = [*owners, *self._group]
        self._group = None
        if self._group_is_suspect:
            for quarantine, urgent in ((self._urgent_suspects, True), (self._bulk_suspects, False)):
                quarantine.put_back([owner for owner in group if owner.urgent is urgent])
        else:
            self._waiting.extendleft(reversed(group))
