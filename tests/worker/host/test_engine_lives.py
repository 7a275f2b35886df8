"""What a worker learns from how its engines end."""

from __future__ import annotations

from typing import Any

import pytest

from impetus_backends.engine_config import EngineConfig
from impetus_worker.errors import EngineDiedError
from impetus_worker.host.engine_lives import MOST_IN_A_ROW, MOST_WHILE_LOADING, EngineLives

HOW = "the engine process 7 was killed by SIGKILL"


class Info:
    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint


def info(fingerprint: str) -> Any:
    return Info(fingerprint)


@pytest.fixture
def lives() -> EngineLives:
    return EngineLives(EngineConfig("embedding"))


def test_an_engine_that_does_nothing_between_its_deaths_is_given_up_in_the_end(lives: EngineLives) -> None:
    for _ in range(MOST_IN_A_ROW):
        lives.died(HOW)
    with pytest.raises(EngineDiedError, match="SIGKILL"):
        lives.died(HOW)
    assert lives.deaths == MOST_IN_A_ROW + 1


def test_an_engine_that_works_between_its_deaths_is_never_given_up(lives: EngineLives) -> None:
    for _ in range(3 * MOST_IN_A_ROW):
        lives.died(HOW)
        lives.worked()
    assert lives.deaths == 3 * MOST_IN_A_ROW


def test_a_backend_that_ends_its_process_while_loading_is_passed_over_and_says_why(lives: EngineLives) -> None:
    for backend in ("coreml", "mlx"):
        lives.tries(backend)
        lives.died(HOW)
    assert [each.backend for each in lives.config.excluded] == []
    for _ in range(MOST_WHILE_LOADING - 1):
        lives.tries("coreml")
        lives.died(HOW)
    (excluded,) = lives.config.excluded
    assert excluded.backend == "coreml"
    assert excluded.reason == f"{HOW} while it was loading, {MOST_WHILE_LOADING} times"


def test_a_death_after_loading_is_no_backends_fault(lives: EngineLives) -> None:
    for _ in range(MOST_WHILE_LOADING):
        lives.tries("coreml")
        lives.tries("")
        lives.died(HOW)
    for _ in range(MOST_WHILE_LOADING):
        lives.died(HOW)
    assert [each.backend for each in lives.config.excluded] == []


@pytest.mark.parametrize("first", ["", "a"])
def test_an_engine_that_comes_back_as_another_one_is_noticed(lives: EngineLives, first: str) -> None:
    assert lives.loaded(info(first))
    assert lives.loaded(info(first))
    assert not lives.loaded(info("b"))
