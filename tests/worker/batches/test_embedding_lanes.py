"""Two lanes of texts on one device: those whose callers wait, and bulk."""

from __future__ import annotations

from .batching import BULK, drain, given, job, make_batcher, run, take, words


def test_an_interactive_text_passes_a_bulk_backlog() -> None:
    batcher = make_batcher(max_tokens=20, max_wait_s=0.0)
    take(batcher, [job(*[words(10)] * 100, queue=BULK)], 0.0)
    first, second = batcher.next_work(1.0), batcher.next_work(1.0)
    take(batcher, [job("3", queue="embedding")], 1.0)
    urgent = batcher.next_work(1.0)
    assert first is not None
    assert second is not None
    assert urgent is not None
    assert (first.urgent, second.urgent, urgent.urgent) == (False, False, True)
    assert [row.tolist() for row in urgent.rows] == [[3]]


def test_bulk_has_no_room_where_the_other_lane_has_none_for_both_are_claimed_together() -> None:
    batcher = make_batcher(max_tokens=1000, max_rows=8)
    while batcher.room().interactive:
        batcher.add([job("1") for _ in range(128)])
    assert batcher.room().bulk == 0


def test_bulk_goes_out_only_when_no_interactive_text_waits_for_the_device() -> None:
    batcher = make_batcher(max_tokens=20, max_wait_s=0.0)
    take(batcher, [job(*[words(10)] * 8, queue=BULK), job(*[words(5)] * 16)])
    assert [work.urgent for work in drain(batcher)[0]] == [True] * 4 + [False] * 4


def test_what_waits_while_the_engine_has_an_interactive_batch_goes_before_bulk() -> None:
    batcher = make_batcher(max_tokens=20, max_wait_s=0.0)
    take(batcher, [job("1")])
    first = given(batcher)
    take(batcher, [job("2"), job("3", queue=BULK)])  # of one claim, of which a busy machine read the first alone
    second = given(batcher)
    assert batcher.next_work(1000.0) is None
    batcher.absorb(run(first), 1000.0)
    assert [list(map(int, work.rows[0])) for work in (first, second, given(batcher))] == [[1], [2], [3]]


def test_bulk_does_not_wait_for_texts_that_wait_for_more() -> None:
    batcher = make_batcher(max_tokens=20, max_wait_s=1.0)
    take(batcher, [job("1")], now=0.0)
    given(batcher, 1.0)
    take(batcher, [job("2"), job(*[words(10)] * 2, queue=BULK)], now=1.0)
    assert not given(batcher, 1.5).urgent


def test_bulk_is_not_passed_twice_in_a_row_by_batches_that_are_not_full() -> None:
    batcher = make_batcher(max_tokens=20, max_wait_s=0.0)
    take(batcher, [job(*[words(10)] * 40, queue=BULK), job("1")])
    works = [given(batcher)]
    for running in range(12):  # some come with each batch that the device ends
        take(batcher, [job("1"), job("1")])
        while (work := batcher.next_work(1000.0)) is not None:
            works.append(work)
        batcher.absorb(run(works[running]), 1000.0)
    assert [work.urgent for work in works[:12]] == [True, True, False] * 4


def test_bulk_is_taken_in_for_twelve_seconds_of_the_device_so_that_little_of_its_batches_is_padding() -> None:
    batcher = make_batcher(max_tokens=20, max_rows=8)
    for _ in range(60):  # batches of a quarter of a second, as the device says
        take(batcher, [job(words(20))])
        batcher.absorb(run(given(batcher), device_s=0.25), 1000.0)
    held = 0
    while room := batcher.room().bulk:
        take(batcher, [job(words(20), queue=BULK) for _ in range(room)])
        held += room
    assert 0.75 * 48 <= held <= 50
