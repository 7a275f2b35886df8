"""Which shapes, and which rows in which: every row once, in a bucket it fits, at the least cost."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impetus_backends.embedding.devices.packages.buckets import (
    DOCSTRING_LENGTHS,
    STEP,
    Bucket,
    choose,
    padding,
    plan,
    suiting,
)
from impetus_backends.errors import RequestError

BUCKETS = st.lists(
    st.builds(Bucket, st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([32, 64, 96, 128, 256])),
    min_size=1,
    max_size=6,
)


def choose_lengths(data: st.DataObject, buckets: list[Bucket], most: int) -> list[int]:
    longest = max(bucket.length for bucket in buckets)
    return data.draw(st.lists(st.integers(1, longest), max_size=most))


@given(st.data(), BUCKETS)
def test_every_row_is_in_one_call_and_fits_its_bucket(data: st.DataObject, buckets: list[Bucket]) -> None:
    lengths = choose_lengths(data, buckets, 60)
    calls = plan(lengths, buckets)
    assert sorted(row for call in calls for row in call.rows) == list(range(len(lengths)))
    for call in calls:
        assert call.bucket in buckets
        assert 1 <= len(call.rows) <= call.bucket.batch
        assert max(lengths[row] for row in call.rows) <= call.bucket.length


@given(st.data(), BUCKETS)
def test_no_other_choice_of_calls_costs_less(data: st.DataObject, buckets: list[Bucket]) -> None:
    lengths = sorted(choose_lengths(data, buckets, 4), reverse=True)
    cost = sum(call.bucket.cost for call in plan(lengths, buckets))
    # Any set of calls at all: it serves if its places, longest first, hold the rows, longest first.
    for size in range(len(lengths) + 1):
        for others in product(sorted(set(buckets)), repeat=size):
            places = sorted((bucket.length for bucket in others for _ in range(bucket.batch)), reverse=True)
            if len(places) >= len(lengths) and all(map(int.__ge__, places, lengths)):
                assert cost <= sum(bucket.cost for bucket in others)


def test_a_text_alone_takes_the_smallest_bucket_that_fits() -> None:
    buckets = [Bucket(1, 32), Bucket(8, 32), Bucket(1, 128), Bucket(8, 128)]
    assert [call.bucket for call in plan([20], buckets)] == [Bucket(1, 32)]
    assert [call.bucket for call in plan([33], buckets)] == [Bucket(1, 128)]


def test_rows_that_fit_no_bucket_are_refused_with_the_longest_that_would() -> None:
    with pytest.raises(RequestError, match="3 to 129 tokens; each row must be of 1 to 128"):
        plan([3, 129], [Bucket(1, 32), Bucket(1, 128)])
    with pytest.raises(RequestError, match="0 to 3 tokens"):
        plan([3, 0], [Bucket(1, 32)])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2048), st.lists(st.integers(0, 1000), min_size=1, max_size=16), st.integers(1, 8))
def test_chosen_buckets_take_the_longest_row_and_keep_to_the_steps(longest: int, counts: list[int], count: int) -> None:
    chosen = choose(longest, counts, count=count)
    assert 1 <= len(chosen) <= count
    assert len(set(chosen)) == len(chosen)
    assert max(bucket.length for bucket in chosen) == longest
    assert all(bucket.length % STEP == 0 or bucket.length == longest for bucket in chosen)


def test_buckets_follow_the_lengths_they_are_chosen_for() -> None:
    short, long = [1000, 0, 0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0, 1000]
    assert sum(bucket.length == 32 for bucket in choose(256, short, count=4)) >= 2
    assert sum(bucket.length == 256 for bucket in choose(256, long, count=4)) >= 2


def test_more_buckets_waste_less_on_the_docstrings() -> None:
    lengths = [32 * bin_ + 16 for bin_, count in enumerate(DOCSTRING_LENGTHS) for _ in range(count // 10)]
    waste = [padding(lengths, choose(512, count=count)) for count in (2, 6)]
    assert waste[1].in_bulk < waste[0].in_bulk
    assert waste[1].alone < waste[0].alone
    assert waste[1].in_bulk < 1


def test_padding_is_what_it_says() -> None:
    waste = padding([32, 32, 16, 16], [Bucket(2, 32), Bucket(1, 64)])
    assert waste.in_bulk == pytest.approx(128 / 96 - 1)
    assert waste.alone == pytest.approx(4 * 64 / 96 - 1)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("longest", [40, 512, 513, 514, 768, 1000, 2048, 8192])
def test_no_long_text_is_padded_to_more_than_twice_its_tokens(longest: int, packed: bool) -> None:
    buckets = suiting(longest, packed=packed)
    assert set(choose(min(longest, 512), packed=packed)) <= set(buckets)
    assert max(bucket.length for bucket in buckets) == longest
    assert all(bucket.length % STEP == 0 or bucket.length == longest for bucket in buckets)
    beyond = [bucket for bucket in buckets if bucket.length > 512]
    assert len(beyond) == len(set(beyond)) <= 4
    for length in range(512, longest + 1, 7):
        assert [call.bucket.tokens <= 2 * length for call in plan([length], buckets)] == [True]


def test_six_hundred_tokens_take_a_function_of_a_thousand_and_not_of_eight() -> None:
    assert [str(bucket) for bucket in suiting(8192) if bucket.length > 512] == ["1x1024", "1x2048", "1x4096", "1x8192"]
    assert [str(call.bucket) for call in plan([600], suiting(8192))] == ["1x1024"]
