"""Rows that join and leave have no others copied, and a place says nothing of who was there before."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from impetus_backends.generation.batch.places import PlacedKVCache, bound_places, closed_ranks, in_places
from impetus_backends.generation.batch.row import Row
from impetus_backends.generation.batch.running import RunningBatch
from impetus_backends.generation.batch.sampling import Draws, Sampling
from impetus_backends.generation.prefixes import PrefixCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.generation.models.loader import LoadedModel

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


@pytest.mark.parametrize(
    ("streamed", "told", "runs"),
    [
        (False, [0, 1, 2, 0, 1, 2, 9], [(1, 39), (4, 1)]),  # its prompt, and one run of all
        (True, [0, 1, 2, 9], [(1, 39), (1, 1)]),  # its prompt, its first token, and no more
    ],
)
def test_a_prompt_that_is_read_through_is_answered_in_that_step_and_who_reads_along_waits_for_no_other(
    loaded: LoadedModel, record: Any, streamed: bool, told: list[int], runs: list[tuple[int, int]]
) -> None:
    model, recorded = record(loaded)
    batch = RunningBatch(model.model, (), prefill_tokens=64, prefixes=PrefixCache(0))

    def row(number: int, tokens: int, streamed: bool = False) -> Row:
        return Row(number, np.arange(5, 5 + tokens), 20, Draws(Sampling(temperature=0)), streamed=streamed)

    for number in range(3):
        batch.add(row(number, 10))
    for _ in range(3):
        batch.step()
    batch.add(row(9, 40, streamed))
    recorded.since_last_time()
    assert [token.id for token in batch.step()] == told
    assert [(call.rows, call.length) for call in recorded.since_last_time()] == runs
    assert sorted(token.id for token in batch.step()) == [0, 1, 2, 9]
    batch.close()


def test_newcomers_of_both_kinds_join_in_one_step_and_say_what_they_say_alone(loaded: LoadedModel) -> None:
    def row(number: int) -> Row:
        return Row(
            number,
            np.arange(5, 9 + 7 * number),
            12,
            Draws(Sampling(temperature=0)),
            alone=True,
            streamed=number % 2 == 1,
        )

    def said(*numbers: int) -> dict[int, list[int]]:
        batch = RunningBatch(loaded.model, (), prefill_tokens=64, prefixes=PrefixCache(0), read_apart=True)
        tokens: dict[int, list[int]] = {number: [] for number in numbers}
        for number in numbers:
            batch.add(row(number))
        while len(batch):
            for token in batch.step():
                tokens[token.id].append(token.token)
        batch.close()
        return tokens

    alone = {number: said(number)[number] for number in range(4)}
    assert said(0, 1, 2, 3) == alone
    assert said(1, 3, 0, 2) == alone


@pytest.mark.parametrize("taken_out", [False, True])
def test_who_reads_along_may_end_or_be_taken_out_before_others_are_joined(loaded: LoadedModel, taken_out: bool) -> None:
    def said(*numbers: int) -> list[int]:
        batch = RunningBatch(loaded.model, (), prefill_tokens=64, prefixes=PrefixCache(0))
        tokens = []
        for number in numbers:
            most = 12 if number == 0 or taken_out else 1
            batch.add(Row(number, np.arange(5, 15 + number), most, Draws(Sampling(temperature=0)), streamed=number > 0))
            tokens += batch.step()
            batch.remove([number] if number and taken_out else [])
            assert len(batch) == 1
        while len(batch):
            tokens += batch.step()
        batch.close()
        assert [token.id for token in tokens if token.id] == [*numbers[1:]]
        return [token.token for token in tokens if token.id == 0]

    assert said(0, 1, 2) == said(0)


@pytest.mark.parametrize("streamed", [False, True])
def test_of_rows_that_join_together_each_ends_at_its_own_tokens(loaded: LoadedModel, streamed: bool) -> None:
    def said(*stops: tuple[int, ...]) -> list[list[int]]:
        batch = RunningBatch(loaded.model, (), prefill_tokens=64, prefixes=PrefixCache(0))
        for number, stop in enumerate(stops):
            draws = Draws(Sampling(temperature=0))
            batch.add(Row(number, np.arange(5, 15 + number), 12, draws, stop_tokens=stop, streamed=streamed))
        tokens: list[list[int]] = [[] for _ in stops]
        while len(batch):
            for token in batch.step():
                tokens[token.id].append(token.token)
        batch.close()
        return tokens

    whole = said((), ())
    stops = [(row[4],) for row in whole]
    ends = [row.index(stop) + 1 for row, (stop,) in zip(whole, stops, strict=True)]
    assert not set(stops[0]) & set(whole[1])
    assert said(*stops) == [row[:end] for row, end in zip(whole, ends, strict=True)]
    assert said(stops[0], ()) == [whole[0][: ends[0]], whole[1]]
    assert said((), stops[1]) == [whole[0], whole[1][: ends[1]]]
