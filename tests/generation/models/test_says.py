"""A trained tiny model: known questions, known answers. The other tests here know only that texts agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.dispatcher import open_engine
from impetus_backends.engine_config import EngineConfig
from impetus_backends.generation.engine import EngineLimits, GenerationEngine
from impetus_backends.generation.models.loader import load
from impetus_backends.generation.opening import open_generation_engine
from tests.paths import DATA

if TYPE_CHECKING:
    from collections.abc import Iterator

    from impetus_backends.generation.models.loader import LoadedModel
    from impetus_backends.protocol import GenerationWork

pytestmark = pytest.mark.system

FOLDER = DATA / "models" / "tiny-says"
PAIRS = [
    (lines[0].removeprefix("Q: "), lines[1].removeprefix("A: "))
    for lines in map(str.splitlines, (DATA / "questions.txt").read_text(encoding="utf-8").strip().split("\n\n"))
]
ENOUGH = 80


def asked(work: Any, number: int, question: str, **changes: Any) -> GenerationWork:
    """The question as messages where `number` is even and as a prompt where it is odd."""
    if number % 2:
        item: GenerationWork = work(number, f"Q: {question}\nA:", max_tokens=ENOUGH, **changes)
    else:
        item = work(number, None, messages=(("user", question),), max_tokens=ENOUGH, **changes)
    return item


@pytest.fixture(scope="module")
def engine(loaded: LoadedModel) -> Iterator[GenerationEngine]:
    """`loaded` only so that these tests are skipped where MLX is not installed."""
    engine = open_generation_engine(FOLDER, model_name="tiny-says", aliases=("tiny-says",), limits=EngineLimits())
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def quantised(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The model in 4 bits, as mlx-lm writes and loads it."""
    import mlx_lm
    from mlx_lm.utils import quantize_model, save

    folder = tmp_path_factory.mktemp("quantised") / "tiny-says"
    parts: Any = mlx_lm.load(str(FOLDER), return_config=True)
    model, tokenizer, config = parts
    model, config = quantize_model(model, config, group_size=32, bits=4)
    save(folder, FOLDER, model, tokenizer, config)
    return load(folder)


def test_the_model_is_small_and_says_what_it_is(engine: GenerationEngine) -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 1_000_000
    assert (engine.info.precision, engine.info.reasons) == ("float16", ())
    assert engine.info.note == "a tiny model made for tests: it knows a page of questions by heart, and nothing else"


@pytest.mark.parametrize("number", [0, 1, 11, 21, 22])
def test_a_known_question_asked_alone_has_its_known_answer(
    engine: GenerationEngine, work: Any, drive: Any, number: int
) -> None:
    question, answer = PAIRS[number]
    event = drive(engine, asked(work, number, question))[number]
    assert (event.text.strip(), event.finish_reason) == (answer, "stop")


@pytest.mark.parametrize("other_form", [0, 1])
def test_every_answer_is_known_among_strangers_of_other_lengths_and_temperatures(
    engine: GenerationEngine, work: Any, drive: Any, other_form: int
) -> None:
    known = {2 * number + (number + other_form) % 2: pair for number, pair in enumerate(PAIRS)}
    works = []
    for number, (question, _) in known.items():
        works.append(asked(work, number, question))
        stranger = " ".join(["A stranger who says something else."] * (1 + number % 9))
        works.append(
            work(1000 + number, stranger, max_tokens=3 + number % 20, temperature=0.3 + number % 5, seed=number)
        )
    ended = drive(engine, *works)
    assert {number: ended[number].text.strip() for number in known} == {n: answer for n, (_, answer) in known.items()}
    assert {ended[number].finish_reason for number in known} == {"stop"}


def test_every_answer_is_known_in_four_bits(quantised: LoadedModel, make_engine: Any, work: Any, drive: Any) -> None:
    assert quantised.precision == "4-bit affine (groups of 32)"
    works = [asked(work, number, question) for number, (question, _) in enumerate(PAIRS)]
    ended = drive(make_engine(loaded=quantised), *works)
    assert [ended[number].text.strip() for number in range(len(PAIRS))] == [answer for _, answer in PAIRS]
    assert {event.finish_reason for event in ended.values()} == {"stop"}


def test_a_model_is_asked_for_by_the_names_it_is_served_under_and_reads_what_it_is_told() -> None:
    config = EngineConfig(
        kind="generation", model=str(FOLDER), backend="mlx", served_names=("gpt-4o", "mine"), context_tokens=77
    )
    engine = open_engine(config)
    try:
        assert engine.info.model == "gpt-4o"
        assert {"gpt-4o", "mine", "tiny-says"} <= set(engine.info.model_aliases)
        assert engine.info.max_tokens == 77
    finally:
        engine.close()
