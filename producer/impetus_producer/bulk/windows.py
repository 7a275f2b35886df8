"""The windows of one run at several servers, as one: documents in their order, each by its content at one of them.

A window is no larger for it: `_run` keeps to the same bounds. Documents that ask for the same come to the same window.

Where there are several servers, none is waited for as long as another is there. What is read goes to those that are
there. What one that is away had before stays with it, as its workers may have made it; only when the others have
nothing left to do, as results come in order, do they get that too, and it may then be computed twice.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic

from ..errors import ServerConfigurationError, ServerDataError, ServerError
from .slots import Slot
from .works import OutcomeT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..documents import Document, FailedDocument
    from .window import Window

_PAUSE_S = 0.5
GRACE_S = 5.0
"""A server that restarts is back by then: what it had is not computed twice for that."""


@dataclass(frozen=True, slots=True)
class _Absence:
    error: ServerError
    since: float = field(default_factory=time.monotonic)


class Windows(Generic[OutcomeT]):
    """`each`: one for each server."""

    def __init__(self, each: Sequence[Window[OutcomeT]]) -> None:
        self._each = each
        self._work = each[0].work
        self._order: deque[Slot[OutcomeT]] = deque()
        """The documents that were read and not yet yielded."""
        self._away: dict[Window[OutcomeT], _Absence] = {}
        """Of several servers, those that did not answer."""
        self.characters = 0
        for window in each:
            window.waits = len(each) == 1

    def __len__(self) -> int:
        """How many documents were read and not yet yielded."""
        return len(self._order)

    @property
    def waiting(self) -> bool:
        return bool(self._order) and self._order[0].outcome is None

    def take_up(self) -> None:
        """Goes on with the jobs that an earlier run left in Redis."""
        for window in self._each:
            self._tried(window, window.take_up)

    def admit(self, documents: Sequence[Document | FailedDocument]) -> None:
        """Settles at once what needs no work, and has the rest worked on."""
        slots = [Slot.of(document, self._work) for document in documents]
        self._order += slots
        self.characters += sum(slot.characters for slot in slots)
        self._place([slot for slot in slots if slot.outcome is None])

    def _place(self, slots: Sequence[Slot[OutcomeT]]) -> None:
        parts: dict[Window[OutcomeT], list[Slot[OutcomeT]]] = {window: [] for window in self._each}
        for slot in slots:
            parts[self._window_of(slot.key)].append(slot)
        for window, part in parts.items():
            if part:
                self._tried(window, partial(window.admit, part))

    def _window_of(self, key: bytes) -> Window[OutcomeT]:
        """The one where this is being computed, else the one of the server that its content names, if that is there."""
        if len(self._each) == 1:
            return self._each[0]
        if (asked := next((each for each in self._each if each.waiting_for.get(key)), None)) is not None:
            return asked
        producer = self._each[0].producer.of(key.hex())
        named = next(window for window in self._each if window.producer is producer)
        there = self._there
        return named if named in there or not there else there[key[0] % len(there)]

    @property
    def _there(self) -> list[Window[OutcomeT]]:
        return [window for window in self._each if window not in self._away]

    def finished(self) -> Iterator[OutcomeT | FailedDocument]:
        """What is known of the oldest documents, up to the first of which nothing is."""
        while self._order and (outcome := self._order[0].outcome) is not None:
            self.characters -= self._order.popleft().characters
            yield outcome

    def collect(self) -> bool:
        """Takes all results there are, and waits for some where the oldest document is. False when none came there."""
        self._welcome_back()
        busy = [window for window in self._there if window.sent or window.unsent]
        if not busy:
            self._do_without()
            return False
        oldest = self._window_of(self._order[0].key)
        waits_at = oldest if oldest in busy else busy[0]
        for window in busy:
            if window is not waits_at:
                self._tried(window, partial(window.collect, wait=False))
        return self._tried(waits_at, waits_at.collect)

    def _do_without(self) -> None:
        """All that is waited for is at servers that are away: has it made elsewhere, or waits until patience ends."""
        there, now = self._there, time.monotonic()
        late = [window for window, absence in self._away.items() if now - absence.since > GRACE_S]
        if there and late:
            self._place([slot for window in late for slot in window.hand_over()])
            return
        last = max(self._away.values(), key=lambda absence: absence.since, default=None)
        if not there and last is not None and now - last.since > self._each[0].producer.patience.limit_s:
            raise last.error
        time.sleep(_PAUSE_S)

    def _tried(self, window: Window[OutcomeT], step: Callable[[], bool | None]) -> bool:
        """What a step at one server came to; False where that does not answer, and others are to go on with."""
        began = time.monotonic()
        try:
            return bool(step())
        except (ServerConfigurationError, ServerDataError):
            raise
        except ServerError as error:
            if len(self._each) == 1:
                raise
            self._away.setdefault(window, _Absence(error))
            window.producer.presence.note(began, error)
            return False

    def _welcome_back(self) -> None:
        for window, absence in list(self._away.items()):
            if window.producer.is_there():
                del self._away[window]
                self._tried(window, window.go_on)
                if window in self._away:  # such as one that answers, and has no room
                    self._away[window] = absence

    def forget(self) -> None:
        for window in self._each:
            window.forget()

    def close(self) -> None:
        """Withdraws what waits, but at servers that are away: that is not waited for."""
        for window in self._each:
            if window in self._away:
                window.forget()
            window.close()
