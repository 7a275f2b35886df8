"""Which loader a machine gets, what becomes there of a model that comes unquantised, and the memory MLX may keep."""

from __future__ import annotations

import dataclasses
import json
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.dispatcher import generation_loader, get_compute_dispatcher
from impetus_backends.engine_config import EngineConfig
from impetus_backends.generation.models.limits import MOST_CACHE_BYTES, MemoryLimits, memory_limits
from impetus_backends.generation.models.profiles import CHOICES, M5, STANDARD, ModelLoader, Profile, plan
from impetus_backends.machine.policy import not_installable
from impetus_worker.cli.run import run
from impetus_worker.roles import engine_config
from impetus_worker.settings import QUANTIZE_AT_LOAD, WorkerSettings
from tests.backends.machine.machines import NAMES, machine
from tests.paths import DATA

if TYPE_CHECKING:
    from pathlib import Path

SAYS = DATA / "models" / "tiny-says"
PLAIN: dict[str, Any] = {"torch_dtype": "bfloat16"}
PACKED: dict[str, Any] = {"quantization": {"bits": 4, "group_size": 64}}
GIB = 2**30


@pytest.mark.parametrize(
    ("name", "profile", "recipe"),
    [
        ("m1", STANDARD, "4bit"),
        ("m1-ultra", STANDARD, "4bit"),
        ("m2-pro", STANDARD, "4bit"),
        ("m3-max", STANDARD, "4bit"),
        ("m4", STANDARD, "4bit"),
        ("m4-max", STANDARD, "4bit"),
        ("m5", M5, "mixed_4_6"),
        ("vm", STANDARD, "4bit"),
        ("intel", STANDARD, None),
        ("rosetta", STANDARD, None),
        ("linux", STANDARD, None),
    ],
)
def test_each_machine_has_its_loader_and_quantises_what_comes_unquantised_or_not(
    name: str, profile: Profile, recipe: str | None
) -> None:
    hardware = machine(name)
    choice = get_compute_dispatcher(hardware, absence=not_installable(hardware)).lm_backend
    loader = generation_loader(EngineConfig("generation"), hardware, choice)
    assert loader.profile is profile
    made = plan(hardware, profile, "auto", PLAIN, None)
    assert (made.quantization.name if made.quantization else None) == recipe
    assert len(made.reasons) == 1
    assert ("unverified" in made.reasons[0]) is (name == "m5")
    assert plan(hardware, profile, "auto", PACKED, None) == plan(hardware, profile, "none", PACKED, None)
    assert plan(hardware, profile, "auto", PACKED, None).reasons == ()


@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_asks_for_goes_before_the_machine(name: str) -> None:
    for option in CHOICES[1:]:
        made = plan(machine(name), STANDARD, option, PLAIN, None)
        assert (made.quantization.name if made.quantization else "none") == option
        assert made.reasons[0].endswith("asked for")


def test_a_model_that_comes_quantised_stays_so_whatever_is_asked_and_the_reason_is_told() -> None:
    made = plan(machine("m5"), M5, "8bit", PACKED, None)
    assert made.quantization is None
    assert made.reasons == ("not quantised to 8bit, because the model comes quantised: 4-bit affine (groups of 64)",)


def test_a_virtual_machine_that_shows_no_gpu_quantises_nothing() -> None:
    hidden = dataclasses.replace(machine("vm"), gpu_architecture="")
    assert plan(hidden, STANDARD, "auto", PLAIN, None).quantization is None


def test_the_m5_reads_prompts_in_longer_steps() -> None:
    assert (STANDARD.prefill_tokens, M5.prefill_tokens) == (512, 2048)


def test_mlx_asked_for_by_name_has_the_profile_of_the_machine_too() -> None:
    choice = get_compute_dispatcher(machine("m5"), generation="mlx").lm_backend
    assert choice.profile == "m5"
    assert "unverified" in choice.reasons[-1]
    assert get_compute_dispatcher(machine("m5"), generation="simulated").lm_backend.profile is None


def test_the_option_comes_from_the_command_line_to_the_loader() -> None:
    assert QUANTIZE_AT_LOAD == CHOICES
    assert run.make_context("run", ["--generation-quantize", "8bit"]).params["generation_quantize"] == "8bit"
    settings = WorkerSettings(("redis://x",), "generation", "w", generation_quantize="8bit")
    config = engine_config(WorkerSettings.from_json(settings.to_json()))
    choice = get_compute_dispatcher(machine("m4"), absence=lambda name: None).lm_backend
    assert generation_loader(config, machine("m4"), choice).option == "8bit"


@pytest.mark.system
def test_the_loader_says_what_it_did(loaded: Any) -> None:
    made = ModelLoader(machine("m5"), M5).load(SAYS)
    assert made.precision == "4-bit affine (groups of 64), 2 layers 6-bit, quantised at load"
    assert made.reasons[0].startswith("quantised at load to mixed_4_6 (4-bit affine, 6 where it tells most), as the m5")
    plain = ModelLoader(machine("linux")).load(SAYS)
    assert (plain.precision, plain.reasons) == (
        "float16",
        ("loaded as it comes, unquantised: there is no Apple GPU here",),
    )


@pytest.mark.system
@pytest.mark.parametrize(
    ("width", "precision"), [(64, "4-bit affine (groups of 64), quantised at load"), (36, "float32")]
)
def test_a_model_that_the_profile_cannot_quantise_is_loaded_as_far_as_it_can_be(
    loaded: Any, tmp_path: Path, width: int, precision: str
) -> None:
    from mlx_lm.models.gpt2 import Model, ModelArgs
    from mlx_lm.utils import save_model

    # GPT-2 has no layers of the names that the mixed recipe goes by.
    config = {"model_type": "gpt2", "n_ctx": 64, "n_embd": width, "n_head": 2, "n_layer": 1, "n_positions": 64}
    config |= {"layer_norm_epsilon": 1e-5, "vocab_size": 512}
    folder = tmp_path / "gpt2"
    save_model(folder, Model(ModelArgs.from_dict(config)))
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SAYS / name, folder)
    made = ModelLoader(machine("m5"), M5).load(folder)
    assert made.precision == precision
    assert made.reasons[0].startswith("not quantised to mixed_4_6: mixed_4_6 does not know this model's layers")
    assert made.reasons[-1] in ("quantised at load to 4bit instead", "loaded as it comes, unquantised")


def test_a_model_needs_less_memory_where_it_is_quantised_at_load() -> None:
    stored = (SAYS / "model.safetensors").stat().st_size
    assert ModelLoader(machine("linux")).needed_bytes(SAYS) == stored
    assert ModelLoader(machine("m4")).needed_bytes(SAYS) == int(stored * 5 / 16)


@pytest.mark.parametrize(
    ("memory_gib", "cache", "wired_gib"),
    [(8, GIB // 2, 6), (16, GIB, 12), (24, GIB, 18), (192, GIB, 144)],
)
def test_the_memory_limits_follow_from_the_machines_memory(memory_gib: int, cache: int, wired_gib: int) -> None:
    assert memory_limits(memory_gib * GIB) == MemoryLimits(cache, 0)
    assert memory_limits(memory_gib * GIB, wired=True) == MemoryLimits(cache, wired_gib * GIB)


def test_what_models_may_take_bounds_what_is_wired_and_unknown_memory_wires_nothing() -> None:
    assert memory_limits(16 * GIB, 4 * GIB, wired=True).wired_bytes == 4 * GIB
    assert memory_limits(16 * GIB, 64 * GIB, wired=True).wired_bytes == 16 * GIB
    assert memory_limits(0, wired=True) == MemoryLimits(MOST_CACHE_BYTES, 0)


@pytest.mark.parametrize(
    ("metal", "device", "wired"),
    [
        (True, {"max_recommended_working_set_size": 10 * GIB}, [10 * GIB]),
        (True, {"max_recommended_working_set_size": 14 * GIB}, [12 * GIB]),
        (True, {}, []),
        (False, {"max_recommended_working_set_size": 10 * GIB}, []),
    ],
)
def test_wired_memory_needs_metal_and_stays_under_what_the_device_recommends(
    metal: bool, device: dict[str, int], wired: list[int]
) -> None:
    cached: list[int] = []
    said: list[int] = []
    library = SimpleNamespace(
        set_cache_limit=cached.append,
        set_wired_limit=said.append,
        device_info=lambda: device,
        metal=SimpleNamespace(is_available=lambda: metal),
    )
    memory_limits(16 * GIB, wired=True).apply(library)
    assert (cached, said) == ([GIB], wired)
    said.clear()
    memory_limits(16 * GIB).apply(library)
    assert said == []


def _never(*limits: int) -> int:
    raise AssertionError(f"memory was wired: {limits}")


def test_nothing_that_an_engine_does_wires_memory_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    mx = pytest.importorskip("mlx.core")
    pytest.importorskip("mlx_lm")
    from impetus_backends.dispatcher import open_engine
    from impetus_backends.engine_config import EngineConfig
    from impetus_backends.protocol import GenerationWork

    monkeypatch.setattr(mx, "set_wired_limit", _never)
    # As on an Apple GPU, where mlx-lm would wire all of this.
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 10 * GIB, "architecture": "x"})
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    attempts: list[str] = []
    engine = open_engine(EngineConfig("generation", str(SAYS), backend="mlx"), attempts.append)
    assert attempts == ["mlx", ""]
    for number, schema in enumerate((None, '{"type": "integer"}')):
        engine.admit(GenerationWork(number, "one", None, max_tokens=4, schema=schema))
    while engine.pending():
        engine.step()
    engine.close()
    # What mlx-lm itself does unasked, and does not do in our process.
    import mlx_lm

    model, tokenizer = mlx_lm.load(str(SAYS))[:2]
    assert mlx_lm.generate(model, tokenizer, "one", max_tokens=2)


def test_memory_is_wired_where_it_was_asked_for() -> None:
    from impetus_backends.dispatcher import generation_loader
    from impetus_backends.engine_config import EngineConfig
    from impetus_backends.machine.policy import generation_choice

    m4 = machine("m4")
    for asked in (False, True):
        config = EngineConfig("generation", wired_memory=asked)
        loader = generation_loader(config, m4, generation_choice(m4, absence=lambda name: None))
        assert (loader.limits.wired_bytes > 0) is asked
