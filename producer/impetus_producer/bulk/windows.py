"""The windows of one run at several servers, as one: documents in their order, each by its content at one of them.

A window is no larger for it: `_run` keeps to the same bounds. Documents that ask for the same come to the same window.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic

from ..documents import Document
from .works import OutcomeT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..documents import FailedDocument
    from .window import Window


class Windows(Generic[OutcomeT]):
    """`each`: one for each server."""

    def __init__(self, each: Sequence[Window[OutcomeT]]) -> None:
        self._each = each
        self._order: deque[Window[OutcomeT]] = deque()
        """Of each document that was read and not yet yielded, in which window it is."""

    def __len__(self) -> int:
        """How many documents were read and not yet yielded."""
        return len(self._order)

    @property
    def characters(self) -> int:
        return sum(window.characters for window in self._each)

    @property
    def waiting(self) -> bool:
        return bool(self._order) and self._order[0].waiting

    def take_up(self) -> None:
        for window in self._each:
            window.take_up()

    def admit(self, documents: Sequence[Document | FailedDocument]) -> None:
        parts: dict[Window[OutcomeT], list[Document | FailedDocument]] = {window: [] for window in self._each}
        for document in documents:
            window = self._window_of(document)
            parts[window].append(document)
            self._order.append(window)
        for window, part in parts.items():
            if part:
                window.admit(part)

    def _window_of(self, document: Document | FailedDocument) -> Window[OutcomeT]:
        first = self._each[0]
        if len(self._each) == 1 or not isinstance(document, Document):
            return first
        producer = first.producer.of(first.work.key(document).hex())
        return next(window for window in self._each if window.producer is producer)

    def finished(self) -> Iterator[OutcomeT | FailedDocument]:
        """What is known of the oldest documents, up to the first of which nothing is."""
        while self._order and (outcome := self._order[0].next_finished()) is not None:
            self._order.popleft()
            yield outcome

    def collect(self) -> bool:
        """Takes all results there are, and waits for some at the server that the oldest document is at. False when none
        came there."""
        oldest = self._order[0]
        for window in self._each:
            if window is not oldest:
                window.collect(wait=False)
        return oldest.collect()

    def forget(self) -> None:
        for window in self._each:
            window.forget()

    def close(self) -> None:
        for window in self._each:
            window.close()
