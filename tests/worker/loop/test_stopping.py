"""How long a worker that is to stop waits for a server that does not answer."""

from __future__ import annotations

import pytest

from impetus_worker.loop.stopping import FAREWELL_S, Silence, Stopping


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def later(self, silence: Silence, seconds: float) -> bool:
        """Whether the server is given up by then."""
        self.now += seconds
        silence.look()
        return silence.given_up


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_server_that_answers_is_waited_for_whatever_it_takes(clock: Clock) -> None:
    stopping = Stopping(clock)
    silence = Silence(stopping, clock)
    stopping.begin(cold=False)
    assert not clock.later(silence, 1e6)  # nothing was asked: a long generation runs
    for _ in range(100):
        silence.asked()
        assert not clock.later(silence, FAREWELL_S)
        silence.answered()
    assert stopping
    assert not stopping.cold


def test_a_server_that_is_silent_is_given_up_and_patience_counts_from_the_stop(clock: Clock) -> None:
    stopping = Stopping(clock)
    silence = Silence(stopping, clock)
    silence.asked()
    assert not clock.later(silence, 1e6)
    assert not stopping
    stopping.begin(cold=False)
    assert not clock.later(silence, FAREWELL_S)
    silence.asked()  # once more, which gives it no more time
    assert clock.later(silence, 0.1)


def test_of_two_servers_the_silent_one_alone_is_given_up(clock: Clock) -> None:
    stopping = Stopping(clock)
    silent, other = Silence(stopping, clock), Silence(stopping, clock)
    silent.asked()
    stopping.begin(cold=False)
    assert clock.later(silent, FAREWELL_S + 0.1)
    assert not clock.later(other, 0.0)
    assert not stopping.cold


def test_a_worker_that_stops_cold_waits_for_nobody_and_still_puts_back_what_it_can(clock: Clock) -> None:
    stopping = Stopping(clock)
    silence = Silence(stopping, clock)
    silence.asked()
    stopping.begin(cold=True)
    assert not clock.later(silence, 1e6)
    assert stopping.cold
