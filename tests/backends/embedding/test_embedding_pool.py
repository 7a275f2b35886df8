"""Several embedding models in one engine: loaded when asked for, the least recently used out first."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from impetus_backends.dispatcher import embedding_tokenizer, open_engine
from impetus_backends.engine_config import EngineConfig
from impetus_backends.errors import ModelError
from impetus_backends.protocol import Embedded, EmbeddingWork, Parked, Rejected

from ..conftest import small_model

if TYPE_CHECKING:
    from pathlib import Path

    from impetus_backends.protocol import Engine, EngineInfo

    from ..conftest import Recorded

CONFIG = EngineConfig(
    "embedding", str(small_model("bge")), "numpy", (str(small_model("t5")), str(small_model("electra")))
)


def embed(engine: Engine, info: EngineInfo, number: int, texts: list[str]) -> Embedded:
    rows = [text.ids for text in embedding_tokenizer(info).encode(texts)]
    engine.admit(EmbeddingWork(number, rows, model=info.model))
    events = []
    while engine.pending():
        events += engine.step()
    (done,) = (event for event in events if not isinstance(event, Parked))
    assert isinstance(done, Embedded), done
    return done


def test_each_model_makes_its_own_vectors_and_says_so(texts: list[str], recorded: dict[str, Recorded]) -> None:
    engine = open_engine(CONFIG)
    prints = set()
    for number, info in enumerate((engine.info, *engine.info.others)):
        done = embed(engine, info, number, texts)
        assert np.abs(done.vectors - recorded[info.model].vectors["plain"]).max() < 1e-4
        assert done.by is not None
        assert (done.by.model, done.by.dimensions, done.by.folder) == (info.model, info.dimensions, info.folder)
        prints.add(done.by.fingerprint)
    assert len(prints) == 3
    assert {"bge", "t5", "electra"} <= set(engine.info.model_aliases)


def test_where_memory_is_short_the_least_recently_used_model_goes(texts: list[str]) -> None:
    # Two of the three have room beside each other.
    engine = open_engine(replace(CONFIG, memory_limit_bytes=80_000))
    models = {info.model: info for info in (engine.info, *engine.info.others)}
    loaded: list[str] = []
    for number, name in enumerate(("t5", "bge", "electra", "bge", "t5")):
        rows = [text.ids for text in embedding_tokenizer(models[name]).encode(texts[:1])]
        engine.admit(EmbeddingWork(number, rows, model=name))
        while engine.pending():
            loaded += [name for event in engine.step() if isinstance(event, Parked)]
    assert loaded == ["t5", "electra", "t5"]


def test_a_model_that_is_not_on_the_list_is_refused_by_the_engine() -> None:
    engine = open_engine(CONFIG)
    engine.admit(EmbeddingWork(1, [np.array([1, 2], np.int32)], model="../../etc"))
    assert engine.step() == [Rejected(1, "there is no model '../../etc' here")]


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    again = shutil.copytree(small_model("bge"), tmp_path / "bge")
    with pytest.raises(ModelError, match="two of the models go by the name bge"):
        open_engine(replace(CONFIG, more_models=(str(again),)))
