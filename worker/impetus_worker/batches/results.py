"""What results look like: the contract's JSON, of what engines made."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from ..leases.outcomes import Finished

if TYPE_CHECKING:
    from impetus_backends.protocol import EngineInfo, Generated

    from .backlog import OpenEmbedding


def _provenance(info: EngineInfo, worker: str) -> dict[str, str | None]:
    """The contract's `Provenance`, the same for every result of an engine."""
    return {
        "worker": worker,
        "backend": info.backend,
        "device": info.device,
        "fingerprint": info.fingerprint,
        "note": info.note,
    }


class EmbeddingResults:
    """Results of one worker's embedding engine."""

    def __init__(self, info: EngineInfo, worker: str) -> None:
        same = {"model": info.model, "provenance": _provenance(info, worker)}
        self._same_for_all = json.dumps(same, separators=(",", ":"))[1:-1]

    def of(self, owner: OpenEmbedding) -> Finished:
        """The result of a job all of whose vectors are there."""
        vectors, encoding = owner.vectors, owner.request.encoding_format
        if owner.request.dimensions is not None:
            vectors = vectors[:, : owner.request.dimensions]
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        raw = vectors.astype("<f4", copy=False).tobytes()
        if encoding == "float":
            data = json.dumps(vectors.tolist(), separators=(",", ":"))
        else:
            data = '""' if encoding == "raw" else f'"{base64.b64encode(raw).decode("ascii")}"'
        # Written by hand: json.dumps would look through every character of the block for one to escape.
        result = (
            f'{{"object":"embedding","embeddings":{{"dtype":"float32","shape":[{vectors.shape[0]},{vectors.shape[1]}],'
            f'"encoding":"{encoding}","data":{data}}},'
            f'"usage":{{"prompt_tokens":{owner.tokens},"truncated_texts":{owner.truncated}}},{self._same_for_all}}}'
        )
        return Finished(owner.job, result.encode(), raw if encoding == "raw" else None)


class GenerationResults:
    """Results of one worker's generation engine."""

    def __init__(self, info: EngineInfo, worker: str) -> None:
        self._provenance = _provenance(info, worker)

    def of(self, event: Generated) -> bytes:
        """What was made, be it the whole of it or as far as it came."""
        usage = {"prompt_tokens": event.prompt_tokens, "completion_tokens": event.completion_tokens}
        result: dict[str, Any] = {
            "object": "generation",
            "text": event.text,
            "finish_reason": event.finish_reason,
            "model": event.model,
            "usage": usage | {"cached_tokens": event.cached_tokens},
            "timings": {"first_token_s": round(event.first_token_s, 6), "total_s": round(event.total_s, 6)},
            "provenance": self._provenance | {"fingerprint": event.fingerprint, "note": event.note},
        }
        if event.logprobs is not None:
            result["logprobs"] = [{"token": token, "logprob": round(each, 6)} for token, each in event.logprobs]
        return json.dumps(result, separators=(",", ":")).encode()
