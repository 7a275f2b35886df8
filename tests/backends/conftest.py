"""Recorded truth (scripts/recording: record_reference_vectors.py, record_family_vectors.py and
record_described_vectors.py), MiniLM's real weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from impetus_backends.embedding.folder.config import EmbeddingConfig, read_config
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_backends.models import ModelFiles, resolve
from tests import recordings
from tests.paths import DATA
from tests.recordings import recorded_texts

if TYPE_CHECKING:
    from pathlib import Path

FAMILIES = (
    "mpnet",
    "modernbert",
    "nomic",
    "gte",
    "t5",
    "mt5",
    "qwen3",
    "qwen2",
    "mistral",
    "llama",
    "eurobert",
    "ernie",
    "gemma",
    "camembert",
    "electra",
    "albert",
    "jina",
)
"""Small models of the families beyond BERT's, by the names of their folders."""
RECORDED = ("reference", "families", "described")


@dataclass(frozen=True)
class Recorded:
    """What sentence-transformers made of the recorded texts, for one model."""

    vectors: dict[str, np.ndarray]
    """By the name of the prompt; `plain` where none was named."""
    rows: list[np.ndarray]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return recorded_texts()


@pytest.fixture(scope="session")
def recorded() -> dict[str, Recorded]:
    arrays = recordings.recorded(*RECORDED)
    found = {}
    for name in sorted({key.partition("/")[0] for key in arrays}):
        own = {key.partition("/")[2]: array for key, array in arrays.items() if key.startswith(f"{name}/")}
        rows = np.split(own.pop("ids"), np.cumsum(own.pop("lengths"))[:-1])
        found[name] = Recorded(own, rows)
    return found


@pytest.fixture(scope="session")
def minilm() -> ModelFiles:
    return resolve("all-MiniLM-L6-v2")


@pytest.fixture(scope="session")
def minilm_config(minilm: ModelFiles) -> EmbeddingConfig:
    return read_config(minilm.folder)


@pytest.fixture(scope="session")
def minilm_rows(minilm: ModelFiles, texts: list[str]) -> list[np.ndarray]:
    return [text.ids for text in TextEncoder.load(minilm.folder).encode(texts)]


def small_model(name: str) -> Path:
    """The folder of a small random model in the true file layout."""
    return DATA / "models" / name
