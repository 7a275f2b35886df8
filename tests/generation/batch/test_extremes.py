"""Parameters at and beyond their ends fail alone, or mean what they say, and never reach the neighbours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.generation.engine import GenerationEngine
from impetus_backends.protocol import Generated, Started

if TYPE_CHECKING:
    from collections.abc import Iterator

    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system

HOT = {"temperature": 1.0, "seed": 3}
EXTREMES: list[dict[str, Any]] = [
    *({"top_k": top_k, **HOT} for top_k in (1, 2**31 - 1, 2**31, 2**32 + 1, 2**63 - 1, 2**63, 10**30, -5, -(2**63))),
    *({"seed": seed, "temperature": 1.0} for seed in (0, -1, 2**63, 2**64, 10**40)),
    *({"temperature": temperature, "seed": 3} for temperature in (-1.0, 5e-324, 1e-5, 1e300, math.inf, math.nan)),
    *({"top_p": top_p, **HOT} for top_p in (0.0, 5e-324, -1.0, 2.0, math.inf, math.nan)),
    *({"min_p": min_p, **HOT} for min_p in (1.0, 5e-324, -1.0, 2.0, math.inf, math.nan)),
    *({"repetition_penalty": penalty, **HOT} for penalty in (0.0, -1.0, 5e-324, 1e300, math.inf, math.nan)),
    {"stop": ("x" * 100_000, "a" * 100_000 + "b")},
    {"stop": tuple("é" * at for at in range(1, 17))},
]


@pytest.fixture
def engine(loaded: LoadedModel, info: Any) -> Iterator[GenerationEngine]:
    made = GenerationEngine(loaded, info)
    yield made
    made.close()


@pytest.mark.parametrize("extreme", EXTREMES, ids=lambda extreme: str(extreme)[:40])
def test_whatever_one_asks_for_the_neighbours_go_on_and_start_once(
    engine: GenerationEngine, work: Any, solo: Any, extreme: dict[str, Any]
) -> None:
    for item in (
        work(1, "Hello", max_tokens=6),
        work(50, "x = 1", max_tokens=6, **extreme),
        work(2, "é", max_tokens=6),
    ):
        engine.admit(item)
    heard = []
    while engine.pending():
        heard += engine.step()
    texts = {event.id: event.text for event in heard if isinstance(event, Generated) and event.id != 50}
    assert texts == {1: solo("Hello", 6), 2: solo("é", 6)}
    assert [event.id for event in heard if isinstance(event, Started) and event.id != 50] == [1, 2]
    assert sum(event.id == 50 and not isinstance(event, Started) for event in heard) == 1


def test_more_than_all_tokens_is_all_tokens(engine: GenerationEngine, work: Any, drive: Any) -> None:
    works = [work(at, "Hello", top_k=top_k, **HOT) for at, top_k in enumerate((0, 448, 2**31, 2**63, 10**30))]
    assert len({event.text for event in drive(engine, *works).values()}) == 1
