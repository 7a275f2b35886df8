"""What the simulated backend must have answered: it is deterministic, so every vector and every text is known before.

Computed one text at a time and without a worker: what batching, packing, padding and endings do to a result shows.
"""

from __future__ import annotations

import base64
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.engine_config import EngineConfig
from impetus_backends.protocol import Generated, GenerationWork
from impetus_backends.simulated import (
    SimulatedEmbeddingBackend,
    SimulatedPairEncoder,
    SimulatedRerankBackend,
    SimulatedTextEncoder,
    open_simulated_generation,
)
from impetus_producer.contract import VECTORS_FIELD

if TYPE_CHECKING:
    from collections.abc import Mapping

_encoder = SimulatedTextEncoder()
_backend = SimulatedEmbeddingBackend(0.0, 0.0, sleep=lambda seconds: None)
_pairs = SimulatedPairEncoder()
_reranker = SimulatedRerankBackend(0.0, 0.0, sleep=lambda seconds: None)
_TOLERANCE = 1e-6


def wrong_result(request: Mapping[str, Any], entry: Mapping[bytes, bytes]) -> str | None:
    """What is not right about a result as it lies in Redis; None if nothing is."""
    result = json.loads(base64.b64decode(entry[b"return_value"]))
    if "documents" in request:
        return _wrong_ranking(request, result)
    if "input" not in request:
        return None if result.get("text") == text_of(request) else f"{str(result.get('text'))[:60]!r} is not its text"
    wanted = vectors_of(request)
    block = result["embeddings"]
    if block["shape"] != list(wanted.shape):
        return f"{block['shape']} and not {list(wanted.shape)}"
    raw = entry.get(VECTORS_FIELD.encode()) or base64.b64decode(block["data"])
    if len(raw) != wanted.nbytes:
        return f"{len(raw)} bytes for {list(wanted.shape)}"
    right = (np.abs(np.frombuffer(raw, "<f4").reshape(wanted.shape) - wanted) <= _TOLERANCE).all(axis=1)
    return None if right.all() else f"the vectors of texts {np.flatnonzero(~right)[:5].tolist()} are not theirs"


def _wrong_ranking(request: Mapping[str, Any], result: Mapping[str, Any]) -> str | None:
    rows = [row.ids for row in _pairs.encode(request["query"], request["documents"])]
    scores = _reranker.embed(rows)[:, 0]
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    made = [(each["index"], each["relevance_score"]) for each in result["results"]]
    if [index for index, _ in made] != order:
        return f"the documents {[index for index, _ in made][:5]} come first, and not {order[:5]}"
    apart = max(abs(score - scores[index]) for index, score in made)
    return None if apart <= _TOLERANCE else f"a score is off by {apart}"


def vectors_of(request: Mapping[str, Any]) -> np.ndarray:
    """(texts, dimensions), normalised; float32."""
    texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
    vectors = _backend.embed([row.ids for row in _encoder.encode(texts)])[:, : request.get("dimensions")]
    normalised: np.ndarray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("<f4")
    return normalised


def text_of(request: Mapping[str, Any]) -> str:
    prompt, messages = (
        request.get("prompt"),
        tuple((each["role"], each["content"]) for each in request.get("messages", ())),
    )
    return _text(prompt, messages, request.get("max_tokens", 256), request.get("seed"))


@lru_cache(maxsize=4096)
def _text(prompt: str | None, messages: tuple[tuple[str, str], ...], max_tokens: int, seed: int | None) -> str:
    engine = open_simulated_generation(
        EngineConfig(kind="generation", backend="simulated", simulated_a_s=0.0), sleep=lambda seconds: None
    )
    turns = tuple({"role": role, "content": content} for role, content in messages)
    engine.admit(GenerationWork(1, prompt, turns or None, max_tokens, seed=seed))
    while True:
        for event in engine.step():
            if isinstance(event, Generated):
                return event.text
