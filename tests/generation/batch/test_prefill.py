"""Reading prompts keeps those who decode waiting for no more than one piece, and everybody gets a turn."""

from __future__ import annotations

import dataclasses
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.generation.engine import EngineLimits
from impetus_backends.generation.opening import open_generation_engine
from impetus_backends.protocol import Generated, Rejected, Started

if TYPE_CHECKING:
    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system

PIECE = 48


def letters(first: int, length: int) -> str:
    """A text of so many tokens, which begins as no other does."""
    return "".join(chr(1 + (first * 7 + at * (1 + first % 5)) % 30) for at in range(length))


def ended(events: list[Any]) -> dict[int, str]:
    assert not any(isinstance(event, Rejected) for event in events)
    return {event.id: event.text for event in events if isinstance(event, Generated)}


def test_a_step_reads_no_more_than_a_piece_padding_included(
    make_engine: Any, work: Any, loaded: LoadedModel, record: Any, solo: Any
) -> None:
    model, recorded = record(loaded)
    engine = make_engine(loaded=model, prefill_tokens=PIECE)
    lengths = [1, 2, 5, 47, 48, 49, 50, 97, 145, 300, 3, 9, 17, 25, 33, 2, 1, 1, 60, 24]
    works = [work(at, letters(at, length), max_tokens=3 + at % 4) for at, length in enumerate(lengths)]
    for item in works:
        engine.admit(item)
    texts: dict[int, str] = {}
    read = 0
    while engine.pending():
        texts |= ended(engine.step())
        calls = recorded.since_last_time()
        pieces = [call for call in calls if call.length > 1]
        assert sum(call.tokens for call in pieces) <= PIECE
        assert len(calls) <= 3, "a piece, the first token of those that were read, and everybody's next"
        read += sum(call.tokens for call in pieces)
    assert read >= sum(length - 1 for length in lengths if length > 2)
    assert texts == {item.id: solo(item.prompt, item.max_tokens) for item in works}


def test_everybody_gets_a_token_in_every_step_while_a_long_prompt_is_read(
    make_engine: Any, work: Any, loaded: LoadedModel, record: Any, solo: Any
) -> None:
    model, recorded = record(loaded)
    engine = make_engine(loaded=model, prefill_tokens=PIECE)
    for number in range(3):
        engine.admit(work(number, letters(number, 3), max_tokens=30))
    for _ in range(5):
        engine.step()
    long_one = work(9, letters(9, 10 * PIECE), max_tokens=4)
    engine.admit(long_one)
    recorded.since_last_time()
    texts: dict[int, str] = {}
    read = [0]
    ended_at: dict[int, int] = {}
    for step in count(6):
        now = ended(engine.step())
        texts |= now
        ended_at |= dict.fromkeys(now, step)
        calls = recorded.since_last_time()
        read.append(sum(call.length for call in calls if call.length > 1))
        if not engine.pending():
            break
    assert read[1:12] == [PIECE] * 9 + [PIECE - 1, 0]
    assert ended_at == {0: 29, 1: 29, 2: 29, 9: 5 + 10 + 3}  # in the step in which it joins they have two
    assert texts[9] == solo(long_one.prompt, 4)
    assert texts[0] == solo(letters(0, 3), 30)


def test_a_new_short_request_has_its_first_token_in_the_step_after_its_admission(make_engine: Any, work: Any) -> None:
    engine = make_engine(prefill_tokens=PIECE)
    engine.admit(work(0, letters(0, 3), max_tokens=60))
    for number in range(1, 20):
        engine.admit(work(number, letters(number, 1 + 2 * number), max_tokens=1))
        assert ended(engine.step()).keys() == {number}


def test_short_prompts_pass_a_long_one_that_is_read(make_engine: Any, work: Any, solo: Any) -> None:
    engine = make_engine(prefill_tokens=PIECE)
    engine.admit(work(0, letters(0, 10 * PIECE), max_tokens=1))
    engine.step()
    waited = []
    for number in range(1, 5):
        engine.admit(work(number, letters(number, 10), max_tokens=1))
        for steps in count(1):
            if texts := ended(engine.step()):
                assert texts == {number: solo(letters(number, 10), 1)}
                waited.append(steps)
                break
    assert waited == [1, 2, 2, 2], "each waits for one piece of the long one at most"
    texts = {}
    while not texts:
        texts = ended(engine.step())
    assert texts == {0: solo(letters(0, 10 * PIECE), 1)}


def test_an_endless_supply_of_short_prompts_starves_no_long_one(make_engine: Any, work: Any) -> None:
    engine = make_engine(prefill_tokens=PIECE)
    engine.admit(work(0, letters(0, 10 * PIECE), max_tokens=1))
    engine.admit(work(1, letters(1, 3 * PIECE), max_tokens=1))
    numbers = count(2)
    at: dict[int, int] = {}
    for step in range(1, 40):
        engine.admit(work(next(numbers), letters(step, PIECE), max_tokens=1))
        at |= dict.fromkeys(ended(engine.step()), step)
        if 1 in at:
            break
    assert at[0] <= 2 * 10
    assert at[1] <= 2 * 13, "the second long one is read after the first"
    short = [number for number in at if number > 1]
    assert short == sorted(short), "first come, first served"
    assert len(short) >= 12


def test_no_places_are_lost_when_long_prompts_are_cancelled_while_they_are_read(
    make_engine: Any, work: Any, solo: Any
) -> None:
    engine = make_engine(max_concurrent=2, prefill_tokens=PIECE)
    for number in range(4):
        engine.admit(work(number, letters(number, 5 * PIECE), max_tokens=2))
    engine.step()
    engine.step()
    engine.cancel(0)
    engine.cancel(1)
    texts: dict[int, str] = {}
    for _ in range(40):
        if not engine.pending():
            break
        texts |= ended(engine.step())
    assert texts == {0: "", 1: "", 2: solo(letters(2, 5 * PIECE), 2), 3: solo(letters(3, 5 * PIECE), 2)}


def test_a_piece_that_fails_is_read_again_from_the_start(
    make_engine: Any, work: Any, loaded: LoadedModel, solo: Any
) -> None:
    class FailsAtPiece:
        pieces = 0

        def __call__(self, tokens: Any, **options: Any) -> Any:
            if tokens.shape[1] > 1:
                self.pieces += 1
                if self.pieces == 4:
                    raise RuntimeError("once")
            return loaded.model(tokens, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(loaded.model, name)

    engine = make_engine(loaded=dataclasses.replace(loaded, model=FailsAtPiece()), prefill_tokens=PIECE)
    engine.admit(work(0, letters(0, 3), max_tokens=40))
    engine.admit(work(1, letters(1, 6 * PIECE), max_tokens=3))
    starts: list[int] = []
    texts: dict[int, str] = {}
    while engine.pending():
        events = engine.step()
        texts |= ended(events)
        starts += [event.id for event in events if isinstance(event, Started)]
    assert starts == [0, 1, 1], "who decodes has lost nothing"
    assert texts == {0: solo(letters(0, 3), 40), 1: solo(letters(1, 6 * PIECE), 3)}


# -- one at a time ---------------------------------------------------------------------------------------------------


class Unmergeable:
    """A layer's cache that can be in no batch: it knows nothing of rows."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        if name in {"merge", "extract", "filter", "extend", "prepare", "finalize"}:
            raise AttributeError(name)
        return getattr(self._cache, name)


class Listed(Unmergeable):
    """As `Unmergeable`, but with what a list of caches has for rows, which fails as theirs does."""

    def extract(self, row: int) -> Any:
        return self._cache.extract(row)


@pytest.mark.parametrize("kind", [Unmergeable, Listed])
def test_a_model_whose_caches_cannot_merge_serves_one_at_a_time_and_says_so(
    kind: Any, loaded: LoadedModel, tiny_folder: Any, work: Any, drive: Any, solo: Any, monkeypatch: Any
) -> None:
    from mlx_lm.models.cache import KVCache

    class Model:
        def __call__(self, tokens: Any, **options: Any) -> Any:
            assert tokens.shape[0] == 1
            return loaded.model(tokens, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(loaded.model, name)

        def make_cache(self) -> list[Any]:
            return [kind(KVCache()) for _ in loaded.model.layers]

    limits = EngineLimits(8, memory_bytes=2**26, prefill_tokens=PIECE)
    unmergeable = dataclasses.replace(loaded, model=Model())
    engine = open_generation_engine(
        tiny_folder, model_name="tiny", aliases=(), limits=limits, load=lambda folder: unmergeable
    )
    (reason,) = engine.info.reasons
    assert "one at a time" in reason
    assert "does not yet support batching" in reason
    assert engine.info.max_concurrent == 1
    works = [work(at, letters(at, length), max_tokens=5) for at, length in enumerate((1, 2, 30, 200, 300, 3))]
    works.append(dataclasses.replace(works[4], id=9))
    engine.admit(work(20, "Hello", max_tokens=900))
    assert engine.step() == [Started(20)]
    engine.cancel(20)
    texts = {number: event.text for number, event in drive(engine, *works).items() if number != 20}
    assert texts == {item.id: solo(item.prompt, 5) for item in works}
    engine.close()
