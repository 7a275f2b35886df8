"""A thread beside the loop that ends is heard of, whatever ended it."""

from __future__ import annotations

import pytest

from impetus_worker.companions.companion import Companion
from impetus_worker.inbox import Broken


class Ends(Companion):
    def run(self) -> None:
        raise self.error

    error: BaseException


@pytest.mark.parametrize("error", [ValueError("a bug"), SystemExit(7), KeyboardInterrupt()])
def test_a_thread_that_ends_is_told_to_the_loop_whatever_ended_it(error: BaseException) -> None:
    told: list[object] = []
    companion = Ends("chores", told.append)
    companion.error = error
    companion.start()
    assert companion.join(30)
    assert told == [Broken("chores", error)]
