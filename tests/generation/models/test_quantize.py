"""Weights in fewer bits: what each recipe makes of a model that says something, and what a folder of it holds."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from impetus_backends.errors import BackendError
from impetus_backends.generation.models.loader import load
from impetus_backends.generation.quantization.conversion import REPORT, Order, PerplexityError, convert
from impetus_backends.generation.quantization.quantize import RECIPES, QuantizationError, quantization_of, quantize
from impetus_worker.cli.main import main
from impetus_worker.settings import GENERATION_RECIPES
from tests.paths import DATA

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system

FOLDER = DATA / "models" / "tiny-says"
QUESTIONS = DATA / "questions.txt"
PAIRS = [
    (lines[0].removeprefix("Q: "), lines[1].removeprefix("A: "))
    for lines in map(str.splitlines, QUESTIONS.read_text(encoding="utf-8").strip().split("\n\n"))
]
FORMS = {
    "4bit": "4-bit affine (groups of 64)",
    "8bit": "8-bit affine (groups of 64)",
    "mixed_4_6": "4-bit affine (groups of 64), 2 layers 6-bit",
    "mxfp4": "4-bit mxfp4 (groups of 32)",
    "nvfp4": "4-bit nvfp4 (groups of 16)",
}


def answer(model: LoadedModel, question: str) -> str:
    """What mlx-lm itself generates greedily."""
    import mlx_lm

    text: str = mlx_lm.generate(model.model, model.tokenizer, f"Q: {question}\nA:", max_tokens=60)
    return text.strip()


def weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("model*.safetensors"))


def order(target: Path, recipe: str = "mxfp4", text: str | None = None, **changes: Any) -> Order:
    return Order("tiny-says", FOLDER, target, RECIPES[recipe], text, **changes)


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["convert", "--generation", *arguments])
    return done.exit_code, done.stdout + done.stderr


@pytest.fixture(scope="module")
def eight_bit(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the command makes, and what it prints. `loaded` only to be skipped where MLX is missing."""
    folder = tmp_path_factory.mktemp("converted") / "says-8bit"
    arguments = ("--quantize", "8bit", "--out", str(folder), "--text", str(QUESTIONS), "--tokens", "160")
    status, said = run(str(FOLDER), *arguments)
    assert status == 0, said
    return folder, said


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_loads_answers_as_before_and_is_the_same_made_at_load(
    loaded: LoadedModel, tmp_path: Path, recipe: str
) -> None:
    import mlx.core as mx

    report = convert(order(tmp_path / "small", recipe))
    small, at_load = load(tmp_path / "small"), load(FOLDER, quantization=RECIPES[recipe])
    assert (small.precision, at_load.precision) == (FORMS[recipe], FORMS[recipe] + ", quantised at load")
    assert len({small.fingerprint, at_load.fingerprint, load(FOLDER).fingerprint}) == 3
    question, known = PAIRS[1]
    assert answer(small, question) == known
    tokens = mx.array([small.tokenizer.encode(f"Q: {question}\nA:")])
    assert mx.array_equal(small.model(tokens), at_load.model(tokens))
    assert (report.layers, report.left, report.comparison) == (15, (), None)
    assert report.b.size_bytes == weights_bytes(tmp_path / "small") < 0.6 * report.a.size_bytes


def test_in_eight_bits_the_answers_are_kept_word_for_word(eight_bit: tuple[Path, str]) -> None:
    model = load(eight_bit[0])
    for question, known in PAIRS[::5]:
        assert answer(model, question) == known


def test_the_new_folder_has_all_that_the_model_needs_and_nothing_else(eight_bit: tuple[Path, str]) -> None:
    folder, _ = eight_bit
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / name).read_bytes() == (FOLDER / name).read_bytes()
    assert {file.name for file in folder.iterdir()} == {
        *(file.name for file in FOLDER.iterdir()),
        "model.safetensors.index.json",
        REPORT,
    }
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization"] == {"group_size": 64, "bits": 8, "mode": "affine"}
    assert load(folder).note == "a tiny model made for tests: it knows a page of questions by heart, and nothing else"
    report = json.loads((folder / REPORT).read_text())
    assert (report["recipe"], report["passed"], report["comparison"]["tokens"]) == ("8bit", True, 159)


def test_the_command_prints_the_comparison_and_how_to_serve_the_result(eight_bit: tuple[Path, str]) -> None:
    folder, said = eight_bit
    for line in ("model       tiny-says", "made        8bit: 15 layers packed", f"on 159 tokens of {QUESTIONS}"):
        assert line in said
    assert "0.26 MB" in said
    assert "0.55 of A's" in said
    assert "standard error" in said
    assert f"serve it    impetus-worker run --generation-model {folder}" in said


def test_what_is_quantised_already_is_refused(eight_bit: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = eight_bit
    status, said = run(str(folder), "--quantize", "4bit", "--out", str(tmp_path / "twice"))
    assert status == 1
    assert "says-8bit is quantised already (8-bit affine (groups of 64)), and doing it twice would lose twice" in said
    assert not list(tmp_path.iterdir())
    with pytest.raises(QuantizationError, match="quantised already"):
        load(folder, quantization=RECIPES["4bit"])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, None),
        ({"quantization": None}, None),
        ({"quantization": {"bits": 4, "group_size": 64}}, "4-bit affine (groups of 64)"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"text_config": {"quantization_config": {"quant_method": "gptq", "bits": 4}}}, "4-bit affine"),
    ],
)
def test_every_way_of_saying_that_a_model_is_quantised_is_understood(config: dict[str, Any], said: str | None) -> None:
    assert quantization_of(config) == said


def test_a_folder_is_replaced_only_if_asked_and_only_if_it_holds_a_model(loaded: Any, tmp_path: Path) -> None:
    target = tmp_path / "small"
    convert(order(target, "mxfp4"))
    with pytest.raises(BackendError, match="exists already: give another folder with --out, or replace it with --for"):
        convert(order(target, "nvfp4"))
    assert load(target).precision == FORMS["mxfp4"]
    convert(order(target, "nvfp4", replace=True))
    assert load(target).precision == FORMS["nvfp4"]
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    (photographs / "1.jpg").write_text("a child")
    with pytest.raises(BackendError, match="is no model, and is not replaced"):
        convert(order(photographs, replace=True))
    with pytest.raises(BackendError, match="holds the model that is to be converted"):
        convert(order(FOLDER, replace=True))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["photographs", "small"]


def test_beyond_the_limit_nothing_is_kept_unless_the_loss_is_accepted(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impetus_backends.generation.quantization.perplexity.Comparison.telling", True)
    text = QUESTIONS.read_text(encoding="utf-8")
    strict: dict[str, Any] = {"limit": -0.99, "max_tokens": 60, "text": text}
    with pytest.raises(
        PerplexityError, match=r"mxfp4 makes the perplexity -?\d+\.\d\d% worse.*nothing was kept"
    ) as told:
        convert(order(tmp_path / "small", **strict))
    assert not list(tmp_path.iterdir())
    assert not told.value.report.passed
    report = convert(order(tmp_path / "small", accept_loss=True, **strict))
    assert not report.passed
    assert load(tmp_path / "small").precision == FORMS["mxfp4"]


def test_a_model_that_cannot_be_read_leaves_nothing_behind(loaded: Any, tmp_path: Path) -> None:
    broken = shutil.copytree(FOLDER, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nothing")
    status, said = run(str(broken), "--quantize", "4bit", "--out", str(tmp_path / "small"), "--no-measure")
    assert (status, f"mlx-lm cannot load the model in {broken}" in said) == (1, True)
    assert [each.name for each in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--generation", "x"], "say what to make of it: --quantize 4bit|8bit|mixed_4_6|mxfp4|nvfp4"),
        (["--generation", "x", "--quantize", "int8"], "--quantize int8 is not for generation: take one of 4bit"),
        (["--generation", "x", "--quantize", "4bit", "--documents", "20"], "--documents is not for generation"),
        (
            ["x", "--quantize", "4bit"],
            "--quantize 4bit is not for embeddings: take one of none, fp32, int8, palette6, w8a8, auto",
        ),
        (["x", "--force"], "--force is not for embeddings"),
    ],
)
def test_what_belongs_to_the_other_kind_of_model_is_refused(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(main, ["convert", *arguments])
    assert done.exit_code == 2
    assert sentence in done.stderr


def test_the_command_line_knows_the_recipes() -> None:
    assert tuple(RECIPES) == GENERATION_RECIPES


def test_each_layer_gets_the_largest_group_that_its_width_allows_and_the_others_are_left_alone(loaded: Any) -> None:
    from mlx import nn

    class Odd(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.middling, self.odd = nn.Linear(128, 8), nn.Linear(96, 8), nn.Linear(48, 8)
            self.router, self.kept = nn.Linear(64, 8), nn.Linear(64, 8)

        @staticmethod
        def quant_predicate(path: str, layer: nn.Module) -> bool | dict[str, int]:
            return {"group_size": 64, "bits": 8} if path == "router" else path != "kept"

    model = Odd()
    packed = quantize(model, {"model_type": "odd"}, RECIPES["4bit"])
    assert (packed.layers, packed.left) == (3, ("odd",))
    assert packed.config["quantization"] == {
        "group_size": 64,
        "bits": 4,
        "mode": "affine",
        "middling": {"group_size": 32, "bits": 4, "mode": "affine"},
        "router": {"group_size": 64, "bits": 8, "mode": "affine"},
    }
    assert isinstance(model.kept, nn.Linear)
    with pytest.raises(QuantizationError, match="mixed_4_6 does not know this model's layers"):
        quantize(Odd(), {}, RECIPES["mixed_4_6"])
    with pytest.raises(QuantizationError, match="can pack none of this model's layers"):
        quantize(nn.Sequential(nn.Linear(10, 10)), {}, RECIPES["4bit"])
