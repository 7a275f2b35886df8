"""Rows join those that decode, whatever they want and whoever joins or leaves beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from impetus_backends.generation.batch.row import Row
from impetus_backends.generation.batch.running import ReadingError, RunningBatch
from impetus_backends.generation.batch.sampling import Draws, Sampling
from impetus_backends.generation.prefixes import PrefixCache

if TYPE_CHECKING:
    from impetus_backends.generation.models.loader import LoadedModel


def row(number: int, tokens: int, most: int = 20, **more: Any) -> Row:
    return Row(number, np.arange(5, 5 + tokens), most, Draws(Sampling(temperature=0)), **more)


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
    for number in range(3):
        batch.add(row(number, 10))
    for _ in range(3):
        batch.step()
    batch.add(row(9, 40, streamed=streamed))
    recorded.since_last_time()
    assert [token.id for token in batch.step()] == told
    assert [(call.rows, call.length) for call in recorded.since_last_time()] == runs
    assert sorted(token.id for token in batch.step()) == [0, 1, 2, 9]
    batch.close()


@pytest.mark.parametrize("stream", [False, True])
def test_who_asks_for_a_stream_reads_along(
    loaded: LoadedModel, record: Any, make_engine: Any, work: Any, stream: bool
) -> None:
    model, recorded = record(loaded)
    engine = make_engine(loaded=model)
    engine.admit(work(0, "Hello"))
    for _ in range(3):
        engine.step()
    engine.admit(work(1, "Hello world", stream=stream))
    recorded.since_last_time()
    engine.step()
    *_, last = recorded.since_last_time()
    assert (last.rows, last.length) == ((1, 1) if stream else (2, 1))


def test_who_is_read_with_one_who_reads_along_joins_as_that_one_does(loaded: LoadedModel, record: Any) -> None:
    model, recorded = record(loaded)
    batch = RunningBatch(model.model, (), prefill_tokens=64, prefixes=PrefixCache(0))
    batch.add(row(0, 10))
    for _ in range(2):
        batch.step()
    batch.add(row(8, 20))
    batch.add(row(9, 20, streamed=True))
    recorded.since_last_time()
    assert [token.id for token in batch.step()] == [0, 8, 9]
    assert [(call.rows, call.length) for call in recorded.since_last_time()] == [(2, 19), (2, 1)]
    batch.close()


def test_who_waits_to_join_may_be_taken_out_when_another_could_not_be_read(loaded: LoadedModel) -> None:
    class Refusing:
        def __call__(self, tokens: Any, **options: Any) -> Any:
            if tokens.shape[1] == 29:
                raise MemoryError("too long")
            return loaded.model(tokens, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(loaded.model, name)

    batch = RunningBatch(Refusing(), (), prefill_tokens=128, prefixes=PrefixCache(0), read_apart=True)
    for number, length in ((0, 10), (1, 20), (2, 30)):
        batch.add(row(number, length))
    with pytest.raises(ReadingError, match="too long"):
        batch.step()
    batch.remove([1])
    assert [token.id for token in batch.step()] == [0]
    batch.close()


def test_newcomers_of_both_kinds_join_in_one_step_and_say_what_they_say_alone(loaded: LoadedModel) -> None:
    def said(*numbers: int) -> dict[int, list[int]]:
        batch = RunningBatch(loaded.model, (), prefill_tokens=64, prefixes=PrefixCache(0), read_apart=True)
        tokens: dict[int, list[int]] = {number: [] for number in numbers}
        for number in numbers:
            batch.add(row(number, 4 + 7 * number, 12, alone=True, streamed=number % 2 == 1))
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
            batch.add(row(number, 10 + number, 12 if number == 0 or taken_out else 1, streamed=number > 0))
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
            batch.add(row(number, 10 + number, 12, stop_tokens=stop, streamed=streamed))
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
