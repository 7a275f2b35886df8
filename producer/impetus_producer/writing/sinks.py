"""What vectors are written to: opened, given rows in their order, finished, then made visible at once.

Knows rows. Each kind of file, and of store, is a class of its own elsewhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from ..errors import InvalidRequestError
from .rows import PRECISIONS, Layout, Precision, Rows

if TYPE_CHECKING:
    from pathlib import Path


class Sink(ABC):
    """`write` as they come, then `finish`, then `publish`. `close` at any time."""

    holds_text_ids_only: ClassVar[bool] = True
    """Whether 0 and "0" are written as the same id."""
    precisions: ClassVar[tuple[Precision, ...]] = PRECISIONS
    holds_any: ClassVar[bool] = False
    """Whether rows may hold something else than dense vectors."""

    @staticmethod
    @abstractmethod
    def require() -> None:
        """Raises `MissingExtraError` where the packages for this are not installed."""

    @classmethod
    def check(cls, layout: Layout) -> None:
        """Raises `InvalidRequestError` for what cannot be written so."""
        if layout.holds != "vectors" and not cls.holds_any:
            held = "vectors and no texts" if layout.holds == "answers" else "dense vectors and no sparse ones"
            raise InvalidRequestError(f"this OUT holds {held}: name it .jsonl, .parquet or .arrow")
        for name in layout.columns:
            if name in layout.own_columns:
                raise InvalidRequestError(f"OUT has a column {name!r} of its own: leave --column {name} out")
        if layout.precision not in cls.precisions:
            raise InvalidRequestError(
                f"this OUT holds no {layout.precision} vectors: --precision is one of {', '.join(cls.precisions)}"
            )

    @abstractmethod
    def write(self, rows: Rows) -> None: ...

    @abstractmethod
    def finish(self) -> None:
        """Writes what is still held. All of it is durable then."""

    @abstractmethod
    def publish(self) -> None:
        """Puts what was finished under its final name."""

    @abstractmethod
    def set_aside(self) -> Path | None:
        """Renames what an earlier run wrote there, so that nobody takes it for this one's. None where nothing is."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of what is open, whatever became of it."""
