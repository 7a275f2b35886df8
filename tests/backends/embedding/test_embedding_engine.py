"""One batch a step, urgent ones first, and no batch spoils another."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from impetus_backends.embedding.devices import golden
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.reference import NumpyEmbeddingBackend
from impetus_backends.embedding.engine import EmbeddingEngine, open_engine
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.texts.prompts import missing_prompts
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_backends.errors import BackendUnavailableError, RequestError
from impetus_backends.models import resolve
from impetus_backends.protocol import Embedded, EmbeddingWork, EngineInfo, GenerationWork, Rejected

from ..conftest import small_model
from ..folder.test_model_config import change

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

INFO = EngineInfo("embedding", "fake", "nowhere", "fake", ("fake",), "f", "fp32", dimensions=2, max_tokens=8)
ROWS = [np.array([1, 2], dtype=np.int32), np.array([3], dtype=np.int32)]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], []])
def test_work_comes_out_of_the_pipe_as_it_went_in(rows: list[np.ndarray]) -> None:
    work = EmbeddingWork(7, rows, urgent=True, model="m", output="sparse", chunks=[[(0, 1)], []])
    out = pickle.loads(pickle.dumps(work))
    assert [(row.dtype, row.tolist()) for row in out.rows] == [(row.dtype, row.tolist()) for row in rows]
    assert replace(out, rows=rows) == work


class FakeBackend:
    """Answers with what a function makes of the rows."""

    name = "fake"
    device = "nowhere"
    precision = "fp32"

    def __init__(self, answer: Callable[[Sequence[np.ndarray]], np.ndarray]) -> None:
        self._answer = answer

    def load(self) -> None:
        pass

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        return self._answer(rows)


def right(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([[len(row), row[0]] for row in rows], dtype=np.float32)


def test_a_step_embeds_one_batch_in_the_order_of_its_rows() -> None:
    engine = EmbeddingEngine(FakeBackend(right), INFO, clock=iter([1.0, 1.25]).__next__)
    engine.admit(EmbeddingWork(7, ROWS))
    assert engine.pending() == 1
    (event,) = engine.step()
    assert isinstance(event, Embedded)
    assert (event.id, event.device_s, event.vectors.tolist()) == (7, 0.25, [[2, 1], [1, 3]])
    assert engine.pending() == 0
    assert engine.step() == []


def test_urgent_work_runs_first_and_the_rest_in_order() -> None:
    engine = EmbeddingEngine(FakeBackend(right), INFO)
    for number, urgent in enumerate([False, False, True, True]):
        engine.admit(EmbeddingWork(number, ROWS, urgent=urgent))
    assert [engine.step()[0].id for _ in range(4)] == [2, 3, 0, 1]


def test_cancelled_work_is_forgotten_and_an_unknown_id_is_no_error() -> None:
    engine = EmbeddingEngine(FakeBackend(right), INFO)
    engine.admit(EmbeddingWork(1, ROWS))
    engine.admit(EmbeddingWork(2, ROWS, urgent=True))
    engine.cancel(2)
    engine.cancel(99)
    assert [event.id for event in engine.step()] == [1]


def fail_on_three(rows: Sequence[np.ndarray]) -> np.ndarray:
    if len(rows) == 1:
        raise RuntimeError("the device fell over")
    return right(rows)


def test_a_failing_batch_is_rejected_alone_and_may_be_tried_again() -> None:
    engine = EmbeddingEngine(FakeBackend(fail_on_three), INFO)
    engine.admit(EmbeddingWork(1, ROWS[:1]))
    engine.admit(EmbeddingWork(2, ROWS))
    assert engine.step() == [Rejected(1, "fake: RuntimeError: the device fell over", permanent=False)]
    assert isinstance(engine.step()[0], Embedded)


def refuse(rows: Sequence[np.ndarray]) -> np.ndarray:
    raise RequestError("too long")


@pytest.mark.parametrize(
    ("answer", "message", "permanent"),
    [
        (refuse, "too long", True),
        (lambda rows: right(rows)[:1], r"2 texts came back as \(1, 2\).*drop or merge", False),
        (lambda rows: right(rows)[:, :1], r"came back as \(2, 1\)", False),
        (lambda rows: right(rows) * np.array([[1], [np.nan]], dtype=np.float32), r"rows \[1\] are not finite", False),
    ],
)
def test_wrong_answers_never_leave_the_engine(
    answer: Callable[[Sequence[np.ndarray]], np.ndarray], message: str, permanent: bool
) -> None:
    engine = EmbeddingEngine(FakeBackend(answer), INFO)
    engine.admit(EmbeddingWork(1, ROWS))
    (event,) = engine.step()
    assert isinstance(event, Rejected)
    assert event.permanent == permanent
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(event.message)


def test_work_of_the_other_kind_is_rejected_by_a_later_step() -> None:
    engine = EmbeddingEngine(FakeBackend(right), INFO)
    engine.admit(GenerationWork(5, "hello", None, 8))
    assert engine.pending() == 1
    assert engine.step() == [Rejected(5, "fake generates no text")]
    assert engine.pending() == 0


def test_a_closed_engine_holds_no_work() -> None:
    engine = EmbeddingEngine(FakeBackend(right), INFO)
    engine.admit(EmbeddingWork(1, ROWS))
    engine.close()
    assert engine.pending() == 0


@pytest.mark.parametrize("device", ["cpu", "mlx", "numpy"])
def test_an_engine_opens_after_its_golden_check_and_says_what_it_is(device: str) -> None:
    files = resolve(str(small_model("e5")))
    engine = open_engine(make_backend(device, files.folder), files, reasons=("asked for",))
    info = engine.info
    assert (info.kind, info.backend, info.model, info.dimensions, info.max_tokens) == (
        "embedding",
        device,
        "e5",
        16,
        40,
    )
    assert info.fingerprint.endswith(f"/{device}/{info.precision}")
    assert info.reasons[0] == "asked for"
    assert "golden check passed, least cosine 0.99" in info.reasons[1] or "cosine 1.0" in info.reasons[1]
    engine.admit(EmbeddingWork(1, ROWS))
    (event,) = engine.step()
    assert isinstance(event, Embedded)
    assert event.vectors.shape == (2, 16)


@pytest.mark.parametrize(("model", "dimensions"), [("qwen3", 16), ("electra", 12), ("gemma", 16), ("camembert", 96)])
def test_an_engine_of_a_newer_family_passes_its_golden_check_and_makes_vectors_of_its_own_width(
    model: str, dimensions: int
) -> None:
    files = resolve(str(small_model(model)))
    engine = open_engine(make_backend("cpu", files.folder, threads=1), files)
    assert engine.info.dimensions == dimensions
    engine.admit(EmbeddingWork(1, ROWS))
    (event,) = engine.step()
    assert isinstance(event, Embedded)
    assert event.vectors.shape == (2, dimensions)


@pytest.mark.system
def test_minilm_on_the_cpu_passes_its_golden_check() -> None:
    files = resolve("all-MiniLM-L6-v2")
    config = read_config(files.folder)
    backend = make_backend("cpu", config, threads=2)
    backend.load()
    report = golden.check(backend, config, files.folder)
    assert report.texts == len(golden.GOLDEN_TEXTS)
    assert report.least_cosine > 0.99999
    assert report.largest_difference < 1e-5


def spoilt(spoil: Callable[[NumpyEmbeddingBackend, Sequence[np.ndarray]], np.ndarray], model: str = "e5") -> str:
    """What the golden check says of a reference whose answers are spoilt."""
    config = read_config(small_model(model))
    reference = NumpyEmbeddingBackend(config)
    reference.load()
    backend = FakeBackend(lambda rows: spoil(reference, rows))
    with pytest.raises(BackendUnavailableError) as caught:
        golden.check(backend, config, small_model(model))
    return str(caught.value)


def cut_to_eight_tokens(reference: NumpyEmbeddingBackend, rows: Sequence[np.ndarray]) -> np.ndarray:
    return reference.embed([row[:8] for row in rows])


def first_row_for_all(reference: NumpyEmbeddingBackend, rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.repeat(reference.embed(rows[:1]), len(rows), axis=0)


def mask_ignored(reference: NumpyEmbeddingBackend, rows: Sequence[np.ndarray]) -> np.ndarray:
    longest = max(map(len, rows))
    return reference.embed([np.pad(row, (0, longest - len(row)), constant_values=1) for row in rows])


def test_the_golden_check_finds_the_faults_that_embedding_servers_have() -> None:
    assert "disagrees with the reference" in spoilt(cut_to_eight_tokens)
    assert "in a batch" in spoilt(first_row_for_all)
    assert "in a batch" in spoilt(mask_ignored)
    assert "lengths" not in spoilt(lambda reference, rows: reference.embed(rows[:1])).split("shape")[0]
    assert "not finite" in spoilt(lambda reference, rows: reference.embed(rows) * np.float32(np.nan))
    assert "length is off by 1.0000" in spoilt(lambda reference, rows: reference.embed(rows) * np.float32(0))
    assert not read_config(small_model("electra")).normalised
    assert "cosine 0.0" in spoilt(lambda reference, rows: reference.embed(rows) * np.float32(0), "electra")


def test_the_golden_check_takes_a_vector_of_zeros_where_the_reference_has_one(tmp_path: Path) -> None:
    folder = shutil.copytree(small_model("bge"), tmp_path / "model")
    names = {"": "Transformer", "1_Pooling": "Pooling", "3_Dense": "Dense", "2_Normalize": "Normalize"}
    modules = [{"type": f"sentence_transformers.models.{name}", "path": path} for path, name in names.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "3_Dense").mkdir()
    stated = {"in_features": 16, "out_features": 1, "bias": False}
    relu = stated | {"activation_function": "torch.nn.modules.activation.ReLU"}
    (folder / "3_Dense" / "config.json").write_text(json.dumps(relu))
    weights = np.random.default_rng(10).standard_normal((1, 16)).astype(np.float32)
    save_file({"linear.weight": weights}, folder / "3_Dense" / "model.safetensors")
    backend = make_backend("cpu", folder)
    opened = open_engine(backend, resolve(str(folder)))
    rows = [text.ids for text in TextEncoder.load(folder).encode(golden.GOLDEN_TEXTS)]
    assert set(backend.embed(rows)[:, 0].round(4)) == {0, 1}
    assert opened.info.dimensions == 1


def test_the_golden_check_finds_the_wrong_pooling() -> None:
    config = read_config(small_model("e5"))
    wrong = NumpyEmbeddingBackend(replace(config, pooling=replace(config.pooling, modes=("cls",))))
    wrong.load()
    with pytest.raises(BackendUnavailableError, match=r"cosine 0\.\d+ for .* (alone|in a batch), and 0\.9999"):
        golden.check(wrong, config, small_model("e5"))


def test_a_model_of_a_family_that_needs_prompts_and_states_none_says_so_in_its_note(tmp_path: Path) -> None:
    folder = shutil.copytree(small_model("bge"), tmp_path / "multilingual-e5-small")
    file = folder / "config_sentence_transformers.json"
    change(file, prompts={"query": "query: ", "document": "passage: "})

    def note() -> str | None:
        return open_engine(make_backend("numpy", folder), resolve(str(folder)), check=False).info.note

    assert "E5" not in (note() or "")
    change(file, prompts={"query": "", "document": ""})
    assert 'E5 models were trained with "query: " and "passage: " before every text' in (note() or "")


def test_what_is_no_e5_or_follows_instructions_needs_no_prompts_of_e5s() -> None:
    needy = ("intfloat/e5-base-v2", "intfloat/multilingual-e5-large", "e5-small", "my_e5-Small-finetuned")
    others = ("intfloat/multilingual-e5-large-instruct", "intfloat/e5-mistral-7b-instruct", "bge-small", "type5-base")
    assert all(missing_prompts([name], ["", ""]) for name in needy)
    assert not any(missing_prompts([name], []) for name in others)
    assert missing_prompts(["all-MiniLM-L6-v2"], []) is None
