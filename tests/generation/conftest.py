"""A real tiny model with random weights, made once for these tests, and engines around it."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from impetus_backends.generation.engine import EngineLimits, GenerationEngine, open_generation_engine
from impetus_backends.generation.loader import LoadedModel, load
from impetus_backends.protocol import Deferred, EngineInfo, Event, Generated, GenerationWork, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]


class MakeEngine(Protocol):
    """Makes an engine around the tiny model, or around `loaded`, with these `EngineLimits` (and `clock`); closed when
    the test ends."""

    def __call__(
        self, max_concurrent: int = 16, loaded: LoadedModel | None = None, **limits_of_memory: Any
    ) -> GenerationEngine: ...


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., Path]:
    spec = importlib.util.spec_from_file_location("make_tiny_model", ROOT / "scripts" / "make_tiny_model.py")
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
    """What mlx-lm itself generates greedily for one prompt, less the half character its end may hold."""
    import mlx_lm

    def generate(prompt: str, max_tokens: int = 32) -> str:
        text: str = mlx_lm.generate(loaded.model, loaded.tokenizer, prompt, max_tokens=max_tokens)
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
