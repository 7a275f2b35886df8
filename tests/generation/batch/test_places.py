"""Rows that join and leave have no others copied, and a place says nothing of who was there before."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from impetus_backends.generation.batch.places import PlacedKVCache, bound_places, closed_ranks, in_places

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADS, NUMBERS = 2, 4


def numbers(*rows: Sequence[float]) -> Any:
    """(rows, heads, tokens, numbers), each token made of one number."""
    import mlx.core as mx

    return mx.broadcast_to(
        mx.array(rows, dtype=mx.float32)[:, None, :, None], (len(rows), HEADS, len(rows[0]), NUMBERS)
    )


def read(*rows: Sequence[float]) -> Any:
    """A `BatchKVCache` that has read these rows, which are padded on the left."""
    from mlx_lm.models.cache import BatchKVCache, KVCache

    caches = []
    for row in rows:
        cache = KVCache()
        cache.update_and_fetch(numbers(row), -numbers(row))
        caches.append(cache)
    return BatchKVCache.merge(caches)


def placed(*rows: Sequence[float]) -> PlacedKVCache:
    (cache,) = in_places([read(*rows)])
    assert isinstance(cache, PlacedKVCache)
    return cache


def address(array: Any) -> int:
    import mlx.core as mx

    mx.eval(array)
    return int(np.asarray(memoryview(array)).__array_interface__["data"][0])


def attended(cache: PlacedKVCache, *new: Sequence[float], window: int | None = None) -> list[list[list[float]]]:
    """Of each row, what each of its new tokens sees."""
    mask = cache.make_mask(len(new[0]), return_array=True, window_size=window)
    keys, values = cache.update_and_fetch(numbers(*new), -numbers(*new))
    assert np.array_equal(np.array(values), -np.array(keys))
    held = np.array(keys)[:, 0, :, 0]
    shape = (len(new), 1, len(new[0]), held.shape[1])
    seen = np.ones(shape, dtype=bool) if mask is None else np.broadcast_to(np.array(mask), shape)
    return [[row[visible].tolist() for visible in masks[0]] for row, masks in zip(held, seen, strict=True)]


def test_each_row_sees_its_own_tokens_whoever_is_beside_it() -> None:
    cache = placed([1, 2, 3], [10], [20, 21])
    assert attended(cache, [4], [11], [22]) == [[[1, 2, 3, 4]], [[10, 11]], [[20, 21, 22]]]
    cache.extend(read([30] * 300))  # longer than any place
    assert attended(cache, [5], [12], [23], [31]) == [
        [[1, 2, 3, 4, 5]], [[10, 11, 12]], [[20, 21, 22, 23]], [[*[30] * 300, 31]]
    ]  # fmt: skip
    cache.filter(closed_ranks([1, 2, 3]))
    assert attended(cache, [32], [13], [24])[1:] == [[[10, 11, 12, 13]], [[20, 21, 22, 23, 24]]]
    cache.filter(closed_ranks([1, 2]))
    keys, _ = cache.keys_and_values()
    assert keys.shape[2] == 5, "the longest has left, and its columns are attended over all the same"


@pytest.mark.parametrize("rows", [([1, 2, 3, 4], [5]), ([1, 2, 3], [4, 5, 6])])
def test_a_window_is_counted_in_a_rows_own_tokens(rows: tuple[list[float], ...]) -> None:
    cache = placed(*rows)
    expected = [[[*row, 7][-2:]] for row in rows]
    assert attended(cache, *[[7.0]] * len(rows), window=2) == expected


@pytest.mark.parametrize("rows", [([1, 2],), ([1, 2], [3])])
def test_of_several_new_tokens_each_sees_those_before_it_and_all_can_be_taken_back(
    rows: tuple[list[float], ...],
) -> None:
    cache = placed(*rows)
    new = [[7.0, 8.0, 9.0]] * len(rows)
    assert attended(cache, *new) == [
        [[*row, *each[: at + 1]] for at in range(3)] for row, each in zip(rows, new, strict=True)
    ]
    cache.trim(2)
    assert attended(cache, *[[6.0]] * len(rows)) == [[[*row, 7, 6]] for row in rows]


def test_a_row_that_joins_where_there_is_a_place_has_no_other_copied() -> None:
    cache = placed(*([float(row)] * 300 for row in range(5)))
    before = address(cache.keys)
    cache.filter(closed_ranks([0, 1, 2, 3]))
    cache.extend(read([7] * 400))
    assert address(cache.keys) == before
    assert [row[0][0] for row in attended(cache, *[[9.0]] * 5)] == [0, 1, 2, 3, 7]
    assert address(cache.keys) == before


def test_what_was_not_a_number_in_a_place_is_gone_when_another_row_is_there() -> None:
    cache = placed([1, 2, 3, float("nan"), float("inf")], [4])
    cache.filter(closed_ranks([1]))
    cache.extend(read([5, 6]))
    assert np.isfinite(np.array(cache.keys)).all()
    assert attended(cache, [7], [8]) == [[[4, 7]], [[5, 6, 8]]]


def test_what_is_no_number_in_a_newcomer_s_padding_stays_behind() -> None:
    """Where nothing may be attended to, as in padding, what a model computes may be none."""
    import mlx.core as mx

    newcomers = read([1, 2, 3], [4])
    padding = mx.array([[0, 0, 0], [1, 1, 0]], dtype=mx.bool_)[:, None, :, None]
    newcomers.keys, newcomers.values = (
        mx.where(padding, mx.nan, each[..., :3, :]) for each in (newcomers.keys, newcomers.values)
    )
    (cache,) = in_places([newcomers])
    assert np.isfinite(np.array(cache.keys)).all()
    assert np.isfinite(np.array(cache.values)).all()
    assert attended(cache, [7], [8]) == [[[1, 2, 3, 7]], [[4, 8]]]


def test_a_row_that_has_read_nothing_yet_finds_its_place_empty() -> None:
    from mlx_lm.models.cache import BatchKVCache

    cache = placed([1, 2, float("nan")], [4])
    cache.filter(closed_ranks([1]))
    cache.extend(BatchKVCache([0, 0]))  # one where somebody was, and one for which there is no place yet
    assert np.isfinite(np.array(cache.keys)).all()
    assert attended(cache, [7], [8], [9]) == [[[4, 7]], [[8]], [[9]]]


def test_places_are_given_back_when_memory_is_counted_for_fewer() -> None:
    cache = placed(*([1.0] * 600 for _ in range(4)), [2.0])
    held = cache.nbytes
    cache.filter(closed_ranks([3, 4]))
    bound_places([cache], rows=5, tokens=700)
    assert cache.nbytes == held
    cache.filter([0])
    bound_places([cache], rows=1, tokens=10)
    assert cache.nbytes * 15 == held  # of 5 places of 768 columns one of 256
    assert attended(cache, [3]) == [[[2, 3]]]


def test_columns_are_given_back_though_all_places_are_wanted() -> None:
    cache = placed([1.0] * 600, [2.0])
    held = cache.nbytes
    cache.filter(closed_ranks([1]))
    cache.extend(read([3.0]))
    bound_places([cache], rows=2, tokens=10)
    assert cache.nbytes * 3 == held  # of 768 columns 256
    assert attended(cache, [4], [5]) == [[[2, 4]], [[3, 5]]]


def test_when_rows_leave_those_that_stay_keep_their_places_but_for_the_last_ones() -> None:
    for count in range(1, 7):
        for keep in itertools.chain.from_iterable(itertools.combinations(range(count), n) for n in range(count + 1)):
            order = closed_ranks(keep)
            assert sorted(order) == list(keep)
            assert all(place == row or row >= len(keep) for place, row in enumerate(order))
