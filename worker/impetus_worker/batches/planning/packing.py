"""Texts into batches: pure functions over lengths.

A batch costs what its padded matrix costs, `longest row * rows`, so that product is the budget, and rows of like
length go together. Source: text-embeddings-inference, `core/src/queue.rs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ItemT = TypeVar("ItemT")
_ANOTHER, _ANOTHER_AT_LEAST = 1 / 16, 32
"""About what another batch costs a device beside its tokens, of a full one's tokens and in tokens: to pad more would
cost more."""


def fill(
    items: Sequence[ItemT], length: Callable[[ItemT], int], *, max_tokens: int, max_rows: int
) -> list[list[ItemT]]:
    """Splits items, in their order, into batches with `sum(length) <= max_tokens` and `count <= max_rows`: for devices
    that lay several in a row, and do so the better the more their lengths differ.

    Every item is in exactly one batch. One that is longer than the budget is a batch of its own.
    """
    batches: list[list[ItemT]] = []
    tokens = 0
    for item in items:
        tokens += length(item)
        if not batches or len(batches[-1]) == max_rows or tokens > max_tokens:
            batches.append([])
            tokens = length(item)
        batches[-1].append(item)
    return batches


def pack(
    items: Sequence[ItemT], length: Callable[[ItemT], int], *, max_tokens: int, max_rows: int
) -> list[list[ItemT]]:
    """Splits items into batches with `max(length) * count <= max_tokens` and `count <= max_rows`, shortest first, none
    of which pads by more than a sixteenth of that, or 32 tokens.

    Every item is in exactly one batch. One that is longer than the budget is a batch of its own, and keeps no other
    back. Items of equal length stay in order.
    """
    batches: list[list[ItemT]] = []
    batch: list[ItemT] = []
    tokens, most_padding = 0, max(_ANOTHER * max_tokens, _ANOTHER_AT_LEAST)
    for item in sorted(items, key=length):
        # Sorted, so the newest item is the longest: it alone decides the batch's padded size.
        longest, count = length(item), len(batch)
        full = count == max_rows or longest * (count + 1) > max_tokens
        if batch and (full or longest * count - tokens > most_padding):
            batches.append(batch)
            batch, tokens = [], 0
        batch.append(item)
        tokens += longest
    if batch:
        batches.append(batch)
    return batches
