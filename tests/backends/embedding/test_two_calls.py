"""Two calls of a package go to the device together: what comes of them is what comes of each alone, in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from impetus_backends.embedding.devices.packages.buckets import GUESSED_CALL_TOKENS, Bucket, choose, suiting
from impetus_backends.embedding.devices.packages.device import IN_FLIGHT
from impetus_backends.embedding.devices.packages.runner import Runner
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.errors import BackendError

from ..conftest import small_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impetus_backends.embedding.devices.packages.device import Given, Predictor

CONFIG = read_config(small_model("bge"))
BUCKETS = (Bucket(1, 32), Bucket(2, 32), Bucket(1, 40))


class Made:
    """Functions whose vectors tell which row they are of, on a device whose calls take known times."""

    def __init__(self, *, call_s: float = 0.0, token_s: float = 1e-5, second_s: float = 0.0) -> None:
        """`second_s`: what a second call beside the first takes less than a call alone."""
        self.now = 0.0
        self.handed: list[list[dict[str, np.ndarray]]] = []
        self._call_s, self._token_s, self._second_s = call_s, token_s, second_s

    def clock(self) -> float:
        return self.now

    def runner(self) -> Runner:
        return Runner(CONFIG, {bucket: self.function(bucket) for bucket in BUCKETS}, clock=self.clock)

    def function(self, bucket: Bucket) -> Predictor:
        def predict(given: Sequence[Given]) -> list[np.ndarray]:
            self.handed.append([{name: array.copy() for name, array in each.items()} for each in given])
            self.now += len(given) * (self._call_s + self._token_s * bucket.tokens)
            self.now -= (len(given) - 1) * self._second_s
            return self.answers([vectors_of(each["ids"] * (each["mask"] > 0)) for each in given])

        return predict

    def answers(self, made: list[np.ndarray]) -> list[np.ndarray]:
        return made


def vectors_of(ids: np.ndarray) -> np.ndarray:
    """Another direction for every row, whatever it is padded to."""
    places = np.arange(1, ids.shape[1] + 1)
    angles = np.sin(np.outer(np.arange(1, CONFIG.dimensions + 1), np.arange(1, 8)))
    features = np.stack([(ids * np.cos(places * each)).sum(axis=1) for each in range(1, 8)], axis=1)
    return (features @ angles.T).astype(np.float32)


def rows_of(count: int, longest: int = 30) -> list[np.ndarray]:
    random = np.random.default_rng(7)
    sizes = random.integers(1, longest, count)
    return [random.integers(5, CONFIG.encoder.vocab_size, size, dtype=np.int32) for size in sizes]


def test_two_calls_at_most_are_handed_over_and_every_vector_is_in_its_place() -> None:
    device, rows = Made(), rows_of(23, 40)
    vectors = device.runner().embed(rows)
    assert {len(given) for given in device.handed} == {1, IN_FLIGHT} == {1, 2}
    expected = np.concatenate([vectors_of(row[None]) for row in rows])
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-3)


def test_arrays_of_two_calls_are_apart_and_kept_while_later_ones_are_made() -> None:
    seen: list[list[Given]] = []

    class Watching(Made):
        def function(self, bucket: Bucket) -> Predictor:
            made = super().function(bucket)

            def predict(given: Sequence[Given]) -> Sequence[np.ndarray]:
                seen.append(list(given))
                return made(given)

            return predict

    runner = Watching().runner()
    runner.embed(rows_of(40))
    pairs = [given for given in seen if len(given) == 2]
    assert len(pairs) >= 4
    assert all(given[0]["ids"] is not given[1]["ids"] for given in pairs)
    latest = [id(each["ids"]) for given in pairs[:4] for each in given]
    assert len(set(latest)) == len(latest)


def test_two_calls_go_together_only_where_that_is_no_slower() -> None:
    faster, slower = Made(second_s=1e-4).runner(), Made(second_s=-1e-4).runner()
    for runner in (faster, slower):
        runner.check()
    assert set(faster.in_flight.values()) == {2}
    assert set(slower.in_flight.values()) == {1}


class Exchanging(Made):
    def answers(self, made: list[np.ndarray]) -> list[np.ndarray]:
        return made[::-1]


class Losing(Made):
    def answers(self, made: list[np.ndarray]) -> list[np.ndarray]:
        return made[:1]


class Failing(Made):
    def answers(self, made: list[np.ndarray]) -> list[np.ndarray]:
        if len(made) > 1:
            raise RuntimeError("the batch could not be predicted")
        return made


@pytest.mark.parametrize("kind", [Exchanging, Losing, Failing])
def test_a_device_that_gets_two_calls_wrong_has_them_one_at_a_time(kind: type[Made]) -> None:
    device, rows = kind(), rows_of(9)
    runner = device.runner()
    runner.check()
    device.handed.clear()
    vectors = runner.embed(rows)
    assert {len(given) for given in device.handed} == {1}
    np.testing.assert_allclose(vectors, np.concatenate([vectors_of(row[None]) for row in rows]), rtol=1e-4, atol=1e-3)


def test_results_that_are_lost_later_are_an_error_and_no_vectors() -> None:
    with pytest.raises(BackendError, match="returned 1 results of 2 calls"):
        Losing().runner().embed(rows_of(9))


@pytest.mark.parametrize("call_tokens", [0, 16, 300])
def test_what_a_call_costs_beside_its_tokens_comes_from_the_timed_probe(call_tokens: int) -> None:
    runner = Made(call_s=call_tokens * 1e-5).runner()
    assert runner.call_tokens is None
    runner.check()
    assert runner.call_tokens == pytest.approx(call_tokens, abs=1e-3)


def test_a_call_that_costs_nothing_but_itself_bounds_the_measurement() -> None:
    runner = Made(call_s=1.0, token_s=0.0).runner()
    runner.check()
    assert runner.call_tokens == 1024


def test_shapes_follow_what_a_call_costs() -> None:
    by_guess, dear = choose(256), choose(256, call_tokens=1000)
    assert by_guess == choose(256, call_tokens=GUESSED_CALL_TOKENS)
    assert max(bucket.batch for bucket in dear) >= max(bucket.batch for bucket in by_guess)
    assert dear != by_guess
    assert suiting(2048, call_tokens=1000) != suiting(2048, call_tokens=1)
