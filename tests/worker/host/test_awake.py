"""Time as a process that may be asleep."""

from __future__ import annotations

from impetus_worker.awake import AwakeClock


def test_a_gap_between_two_looks_is_sleep_and_is_told_once() -> None:
    time_s = 100.0
    clock = AwakeClock(lambda: time_s)
    began = clock()
    time_s += 2.9
    assert round(clock() - began, 3) == 2.9
    assert clock.slept_s() == 0
    time_s += 3600
    assert clock.slept_s() == 3600
    assert clock.slept_s() == 0
    assert round(clock() - began, 3) == 2.9
    time_s += 1
    assert round(clock() - began, 3) == 3.9


def test_long_work_of_the_one_who_looks_is_no_sleep() -> None:
    time_s = 100.0
    clock = AwakeClock(lambda: time_s)
    began = clock()
    time_s += 6
    clock.worked()
    assert round(clock() - began, 3) == 6
    assert clock.slept_s() == 0
    time_s += 6
    assert clock.slept_s() == 6
