"""LoRA adapters: each answers as mlx-lm makes it answer, on weights that are in memory once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.dispatcher import open_engine
from impetus_backends.engine_config import EngineConfig
from impetus_backends.errors import ModelError
from impetus_backends.generation.models.adapters import SharedWeights
from impetus_backends.generation.models.loader import load
from impetus_backends.protocol import Generated, Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from impetus_backends.protocol import Engine

pytestmark = pytest.mark.system
PROMPTS = ("Hello world", "The river was quiet", "x = 1")


def write_adapter(folder: Path, model: Path, seed: int, *, rank: int = 4, dora: bool = False) -> Path:
    """An adapter of the model as `mlx_lm.lora` writes one, with random weights."""
    import mlx.core as mx
    import mlx_lm
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers

    parts: Any = mlx_lm.load(str(model))
    parameters = {"rank": rank, "scale": 20.0, "dropout": 0.0}
    parts[0].freeze()
    linear_to_lora_layers(parts[0], 2, parameters, use_dora=dora)
    mx.random.seed(seed)
    trained: Any = tree_flatten(parts[0].trainable_parameters())
    folder.mkdir()
    mx.save_safetensors(
        str(folder / "adapters.safetensors"), {name: mx.random.normal(each.shape) * 0.1 for name, each in trained}
    )
    stated = {"fine_tune_type": "dora" if dora else "lora", "num_layers": 2, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(stated))
    return folder


@pytest.fixture(scope="module")
def adapters(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(root / name, tiny_folder, seed, dora=name == "poet")
        for seed, name in enumerate(("pirate", "poet"))
    }


@pytest.fixture
def engine(tiny_folder: Path, adapters: dict[str, Path]) -> Iterator[Engine]:
    named = tuple((name, str(folder)) for name, folder in adapters.items())
    engine = open_engine(EngineConfig("generation", str(tiny_folder), adapters=named, max_concurrent=4))
    yield engine
    engine.close()


def alone(folder: Path, adapter: Path | None, prompt: str) -> str:
    import mlx_lm

    parts: Any = mlx_lm.load(str(folder), adapter_path=str(adapter) if adapter else None)
    model, tokenizer = parts
    made = [each.token for each in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=12)]
    text: str = tokenizer.decode([token for token in made if token not in tokenizer.eos_token_ids])
    return text.rstrip("\ufffd")


def test_each_adapter_answers_as_mlx_lm_makes_it_and_the_model_itself_as_before(
    engine: Engine, tiny_folder: Path, adapters: dict[str, Path], work: Any, drive: Any
) -> None:
    names = (None, "pirate", "poet")
    asked = {at: (names[at % 3], PROMPTS[at // 3]) for at in range(9)}
    ended = drive(engine, *(work(at, prompt, max_tokens=12, model=name) for at, (name, prompt) in asked.items()))
    texts = {at: event.text for at, event in ended.items()}
    assert texts == {at: alone(tiny_folder, adapters.get(name or ""), prompt) for at, (name, prompt) in asked.items()}
    assert len({texts[0], texts[1], texts[2]}) == 3
    assert {ended[at].model for at in (1, 2)} == {"pirate", "poet"}
    assert len({event.fingerprint for event in ended.values()}) == 3
    assert engine.info.more_models == ("pirate", "poet")


def test_the_weights_are_in_memory_once(tiny_folder: Path, adapters: dict[str, Path]) -> None:
    import mlx.core as mx

    shared = SharedWeights(load, tiny_folder)
    held = [shared.with_adapter(None)]
    before = mx.get_active_memory()
    held += [shared.with_adapter(folder) for folder in adapters.values()]
    mx.eval([each.model.parameters() for each in held])
    of_adapters = sum((folder / "adapters.safetensors").stat().st_size for folder in adapters.values())
    assert mx.get_active_memory() - before < of_adapters + 50_000 < (tiny_folder / "model.safetensors").stat().st_size


def test_what_is_no_adapter_is_refused_by_name_before_anything_is_loaded(tiny_folder: Path, tmp_path: Path) -> None:
    peft = tmp_path / "peft"
    peft.mkdir()
    (peft / "adapter_model.safetensors").write_bytes(b"")
    full = tmp_path / "full"
    full.mkdir()
    (full / "adapter_config.json").write_text('{"fine_tune_type": "full"}')
    (full / "adapters.safetensors").write_bytes(b"")
    refused = {
        str(peft): "holds an adapter in PEFT's form",
        str(full): "it is 'full', and only lora and dora are adapters",
        str(tmp_path / "nowhere"): "there is no folder",
        str(tmp_path): "there is no adapter in",
    }
    for folder, why in refused.items():
        with pytest.raises(ModelError, match=f"^--adapter x: .*{why}"):
            open_engine(EngineConfig("generation", str(tiny_folder), adapters=(("x", folder),)))
    with pytest.raises(ModelError, match="--adapter tiny: a model is called so already"):
        open_engine(EngineConfig("generation", str(tiny_folder), adapters=(("tiny", str(full)),)))


@pytest.mark.parametrize("lost", ["lora_a", "lora_b", "m"])
def test_an_adapter_of_which_a_part_is_missing_is_not_served_as_the_rest_of_it(
    lost: str, tiny_folder: Path, tmp_path: Path, work: Any, drive: Any
) -> None:
    import mlx.core as mx

    part = write_adapter(tmp_path / "part", tiny_folder, 0, dora=True)
    whole: Any = mx.load(str(part / "adapters.safetensors"))
    lost = min(name for name in whole if name.endswith(f".{lost}"))
    mx.save_safetensors(str(part / "adapters.safetensors"), {name: whole[name] for name in whole if name != lost})
    engine = open_engine(EngineConfig("generation", str(tiny_folder), adapters=(("part", str(part)),)))
    ended = drive(engine, work(1, "Hello", max_tokens=3, model="part"), work(2, "Hello", max_tokens=3))
    assert isinstance(ended[1], Rejected)
    assert f"it lacks {lost}" in ended[1].message
    assert isinstance(ended[2], Generated)
    engine.close()


def test_an_adapter_of_another_model_fails_those_who_ask_for_it_alone(
    tiny_folder: Path, make_tiny_model: Any, tmp_path: Path, work: Any, drive: Any
) -> None:
    from scripts.models.make_tiny_model import SIZES

    other = make_tiny_model(tmp_path / "other", 0, SIZES["tiny"]._replace(hidden=32))
    strange = write_adapter(tmp_path / "strange", other, 0)
    engine = open_engine(EngineConfig("generation", str(tiny_folder), adapters=(("strange", str(strange)),)))
    ended = drive(engine, work(1, "Hello", max_tokens=3, model="strange"), work(2, "Hello", max_tokens=3))
    assert isinstance(ended[1], Rejected)
    assert "is not one of this model" in ended[1].message
    assert isinstance(ended[2], Generated)
    engine.close()
