from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.generation.sampling import OwnSampler, Samplers

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


def test_equal_parameters_share_one_sampler_and_a_seed_gets_its_own(loaded: Any) -> None:
    samplers = Samplers()
    assert samplers.get(0.7, 0.9, None) is samplers.get(0.7, 0.9, None)
    assert samplers.get(0.7, 0.9, None) is not samplers.get(0.7, 0.8, None)
    assert samplers.get(0.0, 0.9, None) is samplers.get(0.0, 0.5, 3), "greedy is greedy"
    assert samplers.get(1e-9, 1.0, 3) is samplers.get(0.0, 1.0, None)
    first, second = samplers.get(0.7, 0.9, 1), samplers.get(0.7, 0.9, 1)
    assert first is not second
    assert isinstance(first, OwnSampler)


@pytest.mark.parametrize("seed", [None, 5])
def test_a_small_top_p_leaves_only_the_likeliest_token(loaded: Any, seed: int | None) -> None:
    import mlx.core as mx

    logprobs = mx.log(mx.array([[0.1, 0.5, 0.4]]))
    sampler = Samplers().get(1.0, 0.3, seed)
    assert {int(sampler(logprobs)[0]) for _ in range(20)} == {1}


def test_seeded_draws_follow_the_probabilities(loaded: Any) -> None:
    import mlx.core as mx

    logprobs = mx.log(mx.array([[0.2, 0.7, 0.1]]))
    sampler = Samplers().get(1.0, 1.0, 5)
    drawn = [int(sampler(logprobs)[0]) for _ in range(1000)]
    assert [round(drawn.count(token) / 1000, 1) for token in range(3)] == [0.2, 0.7, 0.1]


def test_new_temperatures_and_top_ps_compile_no_new_kernels(run_python: Any, loaded: Any, tmp_path: Path) -> None:
    printed = run_python(
        "import os\n"
        f"os.environ['TMPDIR'] = {str(tmp_path)!r}  # where MLX keeps what it compiles for a CPU\n"
        "from pathlib import Path\n"
        "import mlx.core as mx\n"
        "from impetus_backends.generation.sampling import Samplers\n"
        "def compiled(values):\n"
        "    for value in values:\n"
        "        for seed in (None, 1):\n"
        "            mx.eval(Samplers().get(value, value / 2, seed)(mx.log(mx.array([[0.5, 0.5]]))))\n"
        f"    return sum(1 for _ in Path({str(tmp_path)!r}).rglob('*.cpp'))\n"
        "print(compiled([0.5]) == compiled([0.6, 0.7, 0.8, 0.9]))"
    )
    assert printed == "True"
