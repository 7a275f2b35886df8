"""How a model may be batched is found out, and in the way that is found its texts are those it gives alone."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import pytest
from scripts.models.families import VISITS, compare
from scripts.models.family_models import FAMILIES, make_model, write_family
from scripts.models.models_page import write_part

from impetus_backends.generation.batching import Batching, find_batching
from impetus_backends.generation.engine import EngineLimits, GenerationEngine
from tests.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system

READ_APART = ("nemotron_h", "mamba", "recurrent_gemma")  # `scripts/families` has them all


@pytest.fixture
def of_family(loaded: LoadedModel) -> Callable[..., LoadedModel]:
    def make_one(name: str, seed: int = 0) -> LoadedModel:
        return dataclasses.replace(loaded, model=make_model(name, loaded.vocabulary_size, seed))

    return make_one


@pytest.mark.parametrize(
    ("family", "way"),
    [
        ("qwen3", "together"),
        ("gemma3_text", "together"),
        ("llama4", "one at a time"),
        *((each, "read apart") for each in READ_APART),
    ],
)
def test_texts_are_those_of_mlx_lm_alone_in_the_way_that_the_self_test_chose(
    family: str, way: str, tmp_path: Path
) -> None:
    found = compare(write_family(tmp_path / family, family))
    assert (found.way, found.right, found.equal) == (way, True, len(VISITS))
    assert found.different > len(VISITS) // 2  # else equal texts say little


def test_the_page_of_models_lists_every_family() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    assert listed == ["model_type", *FAMILIES]


def test_each_part_of_a_page_is_written_by_itself(tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    write_part("One", "## Of one\n\nfirst", page)
    write_part("Two", "second", page)
    write_part("One", "anew", page)
    assert page.read_text(encoding="utf-8") == "# One\n\nanew\n\n# Two\n\nsecond\n"


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_small_leak_is_seen_whatever_the_weights(of_family: Any, seed: int) -> None:
    finding = find_batching(of_family("nemotron_h", seed))
    assert finding.batching is Batching.READ_APART
    assert "probabilities move by" in str(finding.reason)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_rounding_is_no_leak(of_family: Any, precision: str) -> None:
    import mlx.core as mx

    model = of_family("qwen3", 1)
    model.model.set_dtype(getattr(mx, precision))
    assert find_batching(model).batching is Batching.TOGETHER


def test_a_window_that_forgets_too_much_in_a_batch_is_seen(windowed: LoadedModel) -> None:
    class Forgetful:
        """Once a text is longer than its window, it answers otherwise if others run beside it."""

        def __call__(self, tokens: Any, **options: Any) -> Any:
            logits = windowed.model(tokens, **options)
            longest = max(int(layer.offset.max()) if tokens.shape[0] > 1 else 0 for layer in options["cache"])
            return logits * 0.3 if longest > 70 else logits

        def __getattr__(self, name: str) -> Any:
            return getattr(windowed.model, name)

    assert find_batching(windowed).batching is Batching.TOGETHER
    assert find_batching(dataclasses.replace(windowed, model=Forgetful())).batching is Batching.ONE_AT_A_TIME


def test_prompts_that_are_read_one_by_one_are_read_in_one_step_where_they_fit(
    loaded: LoadedModel, record: Any, work: Any, info: Any
) -> None:
    recorded, calls = record(loaded)
    engine = GenerationEngine(recorded, info, EngineLimits(8, prefill_tokens=64), read_apart=True)
    for at in range(3):
        engine.admit(work(at, "Hello world"[: 5 + at]))
    engine.step()
    reading = [call for call in calls.since_last_time() if call.length > 1]
    assert [call.rows for call in reading] == [1, 1, 1]
    engine.close()
