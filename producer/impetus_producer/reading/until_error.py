"""An iterable whose error comes last, after all that it gave before was seen to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ItemT = TypeVar("ItemT")


class UntilError(Generic[ItemT]):
    """Ends where `items` ends or raises; `error` is then what it raised, with a note of after how many items."""

    def __init__(self, items: Iterable[ItemT]) -> None:
        self._items = items
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[ItemT]:
        count = 0
        try:
            for item in self._items:
                yield item
                count += 1
        except Exception as error:  # noqa: BLE001 - it is raised later
            error.add_note(f"The input ended with this after {count:,} items.")
            self.error = error
