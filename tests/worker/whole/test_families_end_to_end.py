"""Newer embedding models through the queue: prompts that are not pooled, dense layers, dimensions of their own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from impetus_producer import JobFailedError, Producer
from tests.paths import DATA
from tests.recordings import recorded, recorded_texts

if TYPE_CHECKING:
    from ..conftest import Fleet

pytestmark = pytest.mark.system


@pytest.mark.parametrize("model", ["electra", "qwen3"])
def test_vectors_of_a_newer_family_through_the_queue_are_those_of_sentence_transformers(
    fleet: Fleet, model: str
) -> None:
    fleet.start("--embedding-backend", "cpu", "--embedding-model", str(DATA / "models" / model))
    producer = Producer(connection=fleet.connection)
    texts = recorded_texts()
    by_family = recorded("families")
    plain = producer.embed(texts)
    asked = producer.embed(texts, input_type="query")
    named = producer.embed(texts, prompt_name="query")
    unknown = producer.embed(texts, prompt_name="qeury")
    cut = producer.embed(texts, dimensions=8)
    told = recorded("prompts")
    own = producer.embed(texts, prompt=json.loads(str(told["prompts"]))[model])
    by_query = by_family[f"{model}/query"]
    pairs = ((plain, by_family[f"{model}/plain"]), (asked, by_query), (named, by_query), (own, told[model]))
    for handle, expected in pairs:
        assert np.abs(np.asarray(handle.result(timeout_s=60).vectors) - expected).max() < 1e-5
    shorter = by_family[f"{model}/plain"][:, :8]
    shorter = shorter / np.linalg.norm(shorter, axis=1, keepdims=True)
    assert np.abs(np.asarray(cut.result(timeout_s=60).vectors) - shorter).max() < 1e-5
    with pytest.raises(
        JobFailedError, match=r"prompt_name: .* has no prompt named 'qeury'; it has 'query', 'document'"
    ):
        unknown.result(timeout_s=60)
