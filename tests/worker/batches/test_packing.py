"""Texts into batches."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from impetus_worker.batches.planning.packing import pack


def padded_tokens(lengths: list[int]) -> int:
    """What a batch of these lengths costs a device."""
    return max(lengths) * len(lengths)


LENGTHS = st.lists(st.integers(1, 600), max_size=200)


@given(LENGTHS, st.integers(1, 2048), st.integers(1, 64))
def test_every_text_is_in_exactly_one_batch_and_no_batch_of_two_exceeds_the_budget(
    lengths: list[int], max_tokens: int, max_rows: int
) -> None:
    batches = pack(lengths, lambda length: length, max_tokens=max_tokens, max_rows=max_rows)
    assert Counter(length for batch in batches for length in batch) == Counter(lengths)
    for batch in batches:
        assert 1 <= len(batch) <= max_rows
        assert len(batch) == 1 or padded_tokens(batch) <= max_tokens


@given(LENGTHS, st.integers(1, 2048))
def test_a_batch_is_closed_only_because_the_next_text_would_not_fit_or_would_pad_it_too_much(
    lengths: list[int], max_tokens: int
) -> None:
    batches = pack(lengths, lambda length: length, max_tokens=max_tokens, max_rows=10**6)
    for batch, following in itertools.pairwise(batches):
        padding = following[0] * len(batch) - sum(batch)
        assert padded_tokens([*batch, following[0]]) > max_tokens or padding > max(max_tokens / 16, 32)


@given(LENGTHS, st.integers(1, 2048), st.integers(1, 64))
def test_no_batch_is_padded_by_more_than_a_sixteenth_of_the_budget_or_what_is_worth_no_other(
    lengths: list[int], max_tokens: int, max_rows: int
) -> None:
    for batch in pack(lengths, lambda length: length, max_tokens=max_tokens, max_rows=max_rows):
        assert padded_tokens(batch) - sum(batch) <= max(max_tokens / 16, 32)


def test_an_oversize_text_is_alone_and_keeps_no_other_back() -> None:
    assert pack([5000, 3, 4], lambda length: length, max_tokens=100, max_rows=8) == [[3, 4], [5000]]


def test_texts_of_equal_length_stay_in_order() -> None:
    items = [("a", 2), ("b", 1), ("c", 2), ("d", 1)]
    assert pack(items, lambda item: item[1], max_tokens=100, max_rows=8) == [
        [("b", 1), ("d", 1), ("a", 2), ("c", 2)],
    ]
