"""How long a worker that is to stop waits for a server that does not answer."""

from __future__ import annotations

import pytest

from impetus_worker.loop.stopping import FAREWELL_S, Stopping


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def later(self, stopping: Stopping, seconds: float) -> bool:
        """Whether it has given the server up by then."""
        self.now += seconds
        stopping.look()
        return stopping.without_server


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_server_that_answers_is_waited_for_whatever_it_takes(clock: Clock) -> None:
    stopping = Stopping(clock)
    stopping.begin(cold=False)
    assert not clock.later(stopping, 1e6)  # nothing was asked: a long generation runs
    for _ in range(100):
        stopping.asked()
        assert not clock.later(stopping, FAREWELL_S)
        stopping.answered()
    assert stopping
    assert not stopping.cold


def test_a_server_that_is_silent_is_given_up_and_patience_counts_from_the_stop(clock: Clock) -> None:
    stopping = Stopping(clock)
    stopping.asked()
    assert not clock.later(stopping, 1e6)
    assert not stopping
    stopping.begin(cold=False)
    assert not clock.later(stopping, FAREWELL_S)
    stopping.asked()  # once more, which gives it no more time
    assert clock.later(stopping, 0.1)
    assert stopping.cold


def test_a_worker_that_stops_cold_waits_for_nobody_and_still_puts_back_what_it_can(clock: Clock) -> None:
    stopping = Stopping(clock)
    stopping.asked()
    stopping.begin(cold=True)
    assert not clock.later(stopping, 1e6)
    assert stopping.cold
