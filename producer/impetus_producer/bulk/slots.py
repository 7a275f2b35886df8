"""The documents of a run in their places, and what became of each so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic

from ..documents import Document, FailedDocument
from .works import OutcomeT

if TYPE_CHECKING:
    from .works import Work


@dataclass(slots=True, eq=False)
class Slot(Generic[OutcomeT]):
    """A document in its place. `key`: empty of what needs no work, whose outcome is there at once."""

    document: Document | FailedDocument
    key: bytes = b""
    outcome: OutcomeT | FailedDocument | None = None

    @classmethod
    def of(cls, document: Document | FailedDocument, work: Work[OutcomeT]) -> Slot[OutcomeT]:
        if isinstance(document, FailedDocument):
            return cls(document, outcome=document)
        if (reason := work.refusal(document)) is not None:
            return cls(document, outcome=FailedDocument(document.id, reason))
        return cls(document, work.key(document))

    @property
    def characters(self) -> int:
        return len(self.document.text) if isinstance(self.document, Document) else 0
