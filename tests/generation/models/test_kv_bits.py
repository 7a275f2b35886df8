"""Keys and values in fewer bits: texts in a batch are those of one row, they take less, and the loss is said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from scripts.models.family_models import FAMILIES, write_family
from scripts.models.make_tiny_model import SIZES

from impetus_backends.errors import ModelError
from impetus_backends.generation.engine import EngineLimits, GenerationEngine
from impetus_backends.generation.memory import measure_row_cost
from impetus_backends.generation.models.loader import load
from impetus_backends.generation.opening import open_generation_engine
from impetus_backends.generation.quantization.keys_and_values import pack_keys_and_values

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.system

BEGINNING = "The small model answers every question with the same confidence. " * 8
PROMPTS = ["Hi", "The river was quiet and the boats came back", BEGINNING + "One", "x = 1", BEGINNING + "Two", "é"]


@pytest.fixture(scope="module")
def folder(make_tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = SIZES["tiny"]._replace(heads=2, key_value_heads=1)  # of 32 numbers, which a group divides
    return make_tiny_model(tmp_path_factory.mktemp("model") / "heads", 0, sizes)  # type: ignore[no-any-return]


@pytest.mark.parametrize("bits", [8, 4])
def test_texts_in_a_batch_are_those_of_one_row_with_pieces_joins_and_remembered_beginnings(
    folder: Path, bits: int, work: Any, drive: Any
) -> None:
    works = [work(at, prompt, max_tokens=5 + 4 * (at % 3)) for at, prompt in enumerate(PROMPTS)]
    limits = EngineLimits(3, prefill_tokens=96, kv_bits=bits)
    engine = open_generation_engine(folder, model_name="tiny", aliases=(), limits=limits)
    assert engine.info.max_concurrent == 3
    assert engine.info.precision == f"float32, keys and values in {bits} bits"
    ended = drive(engine, *works)
    assert sum(event.cached_tokens for event in ended.values()) > 100
    engine.close()
    alone = GenerationEngine(
        pack_keys_and_values(load(folder), bits), engine.info, EngineLimits(1, prefix_cache_bytes=0)
    )
    assert {at: event.text for at, event in drive(alone, *works).items()} == {at: e.text for at, e in ended.items()}
    alone.close()


def test_fewer_bits_take_less_and_lose_more_and_the_log_says_how_much(folder: Path) -> None:
    found = {bits: pack_keys_and_values(load(folder), bits) for bits in (8, 4)}
    costs = {bits: measure_row_cost(each.model).token_bytes for bits, each in found.items()}
    assert costs[4] < costs[8] < measure_row_cost(load(folder).model).token_bytes / 2
    for bits, each in found.items():
        assert f"keys and values are kept in {bits} bits" in each.reasons[-1]
        assert "the perplexity of a sample is" in each.reasons[-1]
    changes = {bits: abs(float(each.reasons[-1].partition("(")[2].partition("%")[0])) for bits, each in found.items()}
    assert changes[8] < changes[4]
    assert len({load(folder).fingerprint, *(each.fingerprint for each in found.values())}) == 3


def test_windows_that_slide_stay_as_they_are_beside_layers_that_are_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FAMILIES["gemma3_text"].config | {"head_dim": 32}
    monkeypatch.setitem(FAMILIES, "gemma3_text", FAMILIES["gemma3_text"]._replace(config=config))
    loaded = pack_keys_and_values(load(write_family(tmp_path / "gemma", "gemma3_text")), 8)
    assert [type(layer).__name__ for layer in loaded.model.make_cache()] == ["RotatingKVCache", "PackedCache"]


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("qwen3", "cannot attend to packed keys: its heads have 16 numbers, and 32 must divide that"),
        ("mamba", "no layer of this model has keys and values that can be packed"),
        ("gpt_oss", "cannot attend to packed keys"),
    ],
)
def test_a_model_that_cannot_be_packed_is_refused_with_the_option(family: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"^--kv-bits 8: .*{why}"):
        pack_keys_and_values(load(write_family(tmp_path / family, family)), 8)
