from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.generation.batch.sampling import BatchSampler, Draws, Sampling

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.system


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9), (2.0, 0.5)])
def test_a_seed_gives_the_same_text_alone_and_among_strangers(
    make_engine: Any, work: Any, drive: Any, temperature: float, top_p: float
) -> None:
    def seeded(number: int, seed: int) -> Any:
        return work(number, "The river was", temperature=temperature, top_p=top_p, seed=seed)

    alone = drive(make_engine(max_concurrent=1), seeded(1, 11))[1].text
    strangers = [
        work(100 + number, "stranger " * number, temperature=number % 3 / 2, seed=None if number % 2 else number)
        for number in range(1, 9)
    ]
    engine = make_engine(max_concurrent=6)
    ended = drive(engine, *strangers[:4], seeded(1, 11), seeded(2, 2**63 - 1), *strangers[4:], seeded(3, 11))
    assert ended[1].text == alone
    assert ended[3].text == alone
    assert ended[2].text != alone


def test_unseeded_requests_differ_from_each_other(make_engine: Any, work: Any, drive: Any) -> None:
    ended = drive(make_engine(), *(work(number, temperature=1.0) for number in range(4)))
    assert len({event.text for event in ended.values()}) == 4


def drawn(rows: list[Sampling], probabilities: list[float], times: int = 1) -> list[list[int]]:
    """So many draws for rows of the same distribution, all rows in one call."""
    import mlx.core as mx

    sampler = BatchSampler()
    sampler.use([Draws(row) for row in rows])
    logprobs = mx.log(mx.array([probabilities] * len(rows)))
    return [[int(token) for token in sampler(logprobs)] for _ in range(times)]


CUTS = [
    (Sampling(top_p=0.3), {1}),
    (Sampling(top_p=0.8), {1, 2}),
    (Sampling(top_k=1), {1}),
    (Sampling(top_k=2), {1, 2}),
    (Sampling(top_k=99), {0, 1, 2, 3}),
    (Sampling(min_p=0.7), {1, 2}),
    (Sampling(min_p=1.0), {1}),
    (Sampling(top_p=0.99, top_k=3, min_p=0.5), {1, 2}),
    (Sampling(temperature=2.0), {0, 1, 2, 3}),
    (Sampling(temperature=0.0, top_k=3), {1}),
    (Sampling(temperature=1e-9), {1}),
]


@pytest.mark.parametrize("seed", [None, 5])
def test_rows_that_ask_for_different_things_each_get_theirs_in_one_call(loaded: Any, seed: int | None) -> None:
    rows = [dataclasses.replace(sampling, seed=seed) for sampling, _ in CUTS]
    seen = drawn(rows, [0.1, 0.45, 0.4, 0.05], times=200)
    assert [set(tokens) for tokens in zip(*seen, strict=True)] == [expected for _, expected in CUTS]


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_probabilities_at_any_temperature(loaded: Any, seed: int | None, temperature: float) -> None:
    probabilities = [0.2, 0.7, 0.1]
    weights = [each ** (1 / temperature) for each in probabilities]
    seen = drawn([Sampling(temperature=temperature, seed=seed)] * 2, probabilities, times=2000)
    for row in range(2):
        tokens = [tokens[row] for tokens in seen]
        assert [tokens.count(token) / 2000 for token in range(3)] == pytest.approx(
            [weight / sum(weights) for weight in weights], abs=0.04
        )


def test_a_seeds_draws_do_not_depend_on_whoever_is_beside_it(loaded: Any) -> None:
    mine, probabilities = Sampling(seed=7), [0.25] * 4
    alone = [tokens[0] for tokens in drawn([mine], probabilities, times=20)]
    beside = [tokens[1] for tokens in drawn([Sampling(), mine, Sampling(seed=8)], probabilities, times=20)]
    assert alone == beside
    assert len(set(alone)) > 1


def test_a_repetition_penalty_makes_seen_tokens_less_likely(make_engine: Any, work: Any, drive: Any) -> None:
    ended = drive(make_engine(), work(1, "x x x x"), work(2, "x x x x", repetition_penalty=5.0))
    repeats = [len(event.text) - len(set(event.text)) for event in (ended[1], ended[2])]
    assert repeats[1] < repeats[0]


def test_new_temperatures_and_top_ps_compile_no_new_kernels(run_python: Any, loaded: Any, tmp_path: Path) -> None:
    printed = run_python(
        "import os\n"
        f"os.environ['TMPDIR'] = {str(tmp_path)!r}  # where MLX keeps what it compiles for a CPU\n"
        "from pathlib import Path\n"
        "import mlx.core as mx\n"
        "from impetus_backends.generation.batch.sampling import BatchSampler, Draws, Sampling\n"
        "def compiled(values):\n"
        "    for value in values:\n"
        "        for seed in (None, 1):\n"
        "            sampler = BatchSampler()\n"
        "            sampler.use([Draws(Sampling(value, value / 2, seed=seed))])\n"
        "            mx.eval(sampler(mx.log(mx.array([[0.5, 0.5]]))))\n"
        f"    return sum(1 for _ in Path({str(tmp_path)!r}).rglob('*.cpp'))\n"
        "print(compiled([0.5]) == compiled([0.6, 0.7, 0.8, 0.9]))"
    )
    assert printed == "True"
