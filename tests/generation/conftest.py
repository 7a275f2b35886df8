"""A real tiny model with random weights, made once for these tests, and engines around it."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from impetus_backends.generation.engine import EngineLimits, GenerationEngine
from impetus_backends.generation.models.loader import LoadedModel, load
from impetus_backends.generation.opening import open_generation_engine
from impetus_backends.protocol import Deferred, EngineInfo, Event, Generated, GenerationWork, Rejected
from tests.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path


def turns(*messages: tuple[str, str] | Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Messages as engines take them; those in pairs have a role and a content."""
    return tuple({"role": each[0], "content": each[1]} if isinstance(each, tuple) else each for each in messages)


def conversation(*messages: tuple[str, str] | Mapping[str, Any], **changes: Any) -> GenerationWork:
    return GenerationWork(1, None, turns(*messages), **changes)


class MakeEngine(Protocol):
    """Makes an engine around the tiny model, or around `loaded`, with these `EngineLimits` (and `clock`); closed when
    the test ends."""

    def __call__(
        self, max_concurrent: int = 16, loaded: LoadedModel | None = None, **limits_of_memory: Any
    ) -> GenerationEngine: ...


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., Path]:
    spec = importlib.util.spec_from_file_location("make_tiny_model", ROOT / "scripts" / "models" / "make_tiny_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[..., Path] = module.make_tiny_model
    return function


@pytest.fixture(scope="session")
def tiny_folder(make_tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def loaded(tiny_folder: Path) -> LoadedModel:
    if importlib.util.find_spec("mlx") is None or importlib.util.find_spec("mlx_lm") is None:
        pytest.skip("MLX is not installed (pip install 'impetus-batch[mlx]')")
    return load(tiny_folder)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a model: its tokens' shape, and what the caches it was given held afterwards."""

    rows: int
    length: int
    cache_bytes: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length


class RecordingModel:
    """A model that keeps a record of its calls."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.calls: list[Call] = []

    def __call__(self, tokens: Any, **options: Any) -> Any:
        logits = self._model(tokens, **options)
        held = sum(layer.nbytes for layer in options["cache"])
        rows, length = tokens.shape
        self.calls.append(Call(rows, length, held))
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def since_last_time(self) -> list[Call]:
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def record() -> Callable[[LoadedModel], tuple[LoadedModel, RecordingModel]]:
    """A model that records its calls, and its record."""

    def wrap(loaded: LoadedModel) -> tuple[LoadedModel, RecordingModel]:
        model = RecordingModel(loaded.model)
        return dataclasses.replace(loaded, model=model), model

    return wrap


@pytest.fixture(scope="session")
def windowed(loaded: LoadedModel) -> LoadedModel:
    """A tiny Gemma of random weights: one layer looks back 64 tokens, and one to the beginning."""
    import mlx.core as mx
    from mlx_lm.models import gemma3_text

    mx.random.seed(0)
    sizes: Any = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    windows: Any = {"sliding_window": 64, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16}
    vocabulary = loaded.model.args.vocab_size
    args = gemma3_text.ModelArgs("gemma3_text", head_dim=16, vocab_size=vocabulary, **sizes, **windows)
    return dataclasses.replace(loaded, model=_evaluated(gemma3_text.Model(args)))


@pytest.fixture(scope="session")
def recurrent(loaded: LoadedModel) -> LoadedModel:
    """A tiny LFM2 of random weights: one layer has a state in place of keys and values, which cannot go back."""
    import mlx.core as mx
    from mlx_lm.models import lfm2

    mx.random.seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    blocks = {"block_dim": 32, "block_ff_dim": 32, "block_multiple_of": 8, "block_ffn_dim_multiplier": 1.0}
    rest = {"conv_bias": False, "conv_L_cache": 3, "block_auto_adjust_ff_dim": False, "full_attn_idxs": [1]}
    vocabulary, context = loaded.model.args.vocab_size, loaded.context_tokens
    shape: Any = {"vocab_size": vocabulary, "max_position_embeddings": context, **sizes, **blocks, **rest}
    return dataclasses.replace(loaded, model=_evaluated(lfm2.Model(lfm2.ModelArgs("lfm2", norm_eps=1e-5, **shape))))


def _evaluated(model: Any) -> Any:
    import mlx.core as mx

    model.eval()
    mx.eval(model.parameters())
    return model


@pytest.fixture(scope="session")
def info(loaded: LoadedModel, tiny_folder: Path) -> EngineInfo:
    engine = open_generation_engine(
        tiny_folder, model_name="tiny", aliases=("tiny", "org/tiny"), limits=EngineLimits(4)
    )
    engine.close()
    return engine.info


@pytest.fixture
def make_engine(loaded: LoadedModel, info: EngineInfo) -> Iterator[MakeEngine]:
    engines: list[GenerationEngine] = []
    the_tiny_one = loaded

    def make(max_concurrent: int = 16, loaded: LoadedModel | None = None, **limits_of_memory: Any) -> GenerationEngine:
        clock = limits_of_memory.pop("clock", time.monotonic)
        limits = EngineLimits(max_concurrent, **limits_of_memory)
        engine = GenerationEngine(loaded or the_tiny_one, info, limits, clock=clock)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def work() -> Callable[..., GenerationWork]:
    """A greedy request, unless told otherwise."""

    def make(work_id: int, prompt: str | None = "Hello", **changes: Any) -> GenerationWork:
        fields: dict[str, Any] = {"messages": None, "max_tokens": 32, "temperature": 0.0, "top_p": 1.0} | changes
        if fields["messages"] is not None:
            fields["messages"] = turns(*fields["messages"])
        return GenerationWork(id=work_id, prompt=prompt, **fields)

    return make


@pytest.fixture(scope="session")
def drive() -> Callable[..., dict[int, Event]]:
    """Admits work and steps until nothing is pending. Each piece of work must end in exactly one `ending`."""

    def run(engine: GenerationEngine, *works: GenerationWork) -> dict[int, Event]:
        for item in works:
            engine.admit(item)
        ended: dict[int, Event] = {}
        while engine.pending():
            for event in engine.step():
                if not isinstance(event, Generated | Rejected | Deferred):
                    continue
                assert event.id not in ended
                ended[event.id] = event
        assert {item.id for item in works} <= set(ended)
        return ended

    return run


@pytest.fixture(scope="session")
def solo(loaded: LoadedModel) -> Callable[[str, int], str]:
    """The text of what mlx-lm itself generates greedily for one prompt, less half a character at its end."""
    import mlx_lm

    def generate(prompt: str, max_tokens: int = 32) -> str:
        made = mlx_lm.stream_generate(loaded.model, loaded.tokenizer, prompt, max_tokens=max_tokens)
        tokens = [each.token for each in made if each.token not in loaded.tokenizer.eos_token_ids]
        text: str = loaded.tokenizer.decode(tokens)
        return text.rstrip("\ufffd")

    return generate


@pytest.fixture(scope="session")
def run_python() -> Callable[[str], str]:
    """Runs a program in a fresh interpreter and returns what it prints."""
    import os
    import subprocess

    def run(program: str) -> str:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
