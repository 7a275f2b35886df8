"""What results look like: the contract's JSON, of what engines made."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Protocol

from impetus_backends.machine.energy import Used

from ..leases.outcomes import Finished

_LEAST_LOGPROB = -9999.0
"""OpenAI's, for what is very unlikely."""

if TYPE_CHECKING:
    from impetus_backends.protocol import Answer, EngineInfo, Generated, Likely, SparseVector

    from .planning.backlog import OpenEmbedding


def _provenance(info: EngineInfo, worker: str) -> dict[str, str | None]:
    """The contract's `Provenance`, the same for every result of an engine."""
    return {
        "worker": worker,
        "backend": info.backend,
        "device": info.device,
        "fingerprint": info.fingerprint,
        "note": info.note,
    }


def _energy_of(owner: OpenEmbedding) -> dict[str, float]:
    """Of a job whose rows have all run."""
    return _energy(owner.energy_j, len(getattr(owner.request, "chunks", None) or owner.vectors), owner.tokens)


def _energy(joules: float | None, texts: int, tokens: int) -> dict[str, float]:
    """The contract's; nothing where it was not measured."""
    if not joules:
        return {}
    used = Used(joules, texts, tokens)
    return {
        "joules_per_1000_texts": round(used.per_1000_texts, 6),
        "joules_per_1000_tokens": round(used.per_1000_tokens, 6),
    }


def _same_for_all(info: EngineInfo, worker: str) -> str:
    """Of a result as JSON, what is the same for all that one model makes."""
    same = {"model": info.model, "provenance": _provenance(info, worker)}
    return json.dumps(same, separators=(",", ":"))[1:-1]


class RowResults(Protocol):
    """Makes the result of a job all of whose rows have their vectors."""

    def of(self, owner: OpenEmbedding) -> Finished: ...


class EmbeddingResults:
    """Results of one worker's embedding engine."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._same: tuple[EngineInfo, str] | None = None
        """What the last result said of its model."""

    def of(self, owner: OpenEmbedding) -> Finished:
        """The result of a job all of whose vectors are there."""
        if owner.output == "sparse":
            data = ",".join(map(_sparse_json, owner.vectors))
            return Finished(owner.job, self._around(owner, f'{{"encoding":"sparse","data":[{data}]}}'))
        vectors, encoding = owner.vectors, owner.request.encoding_format
        if owner.request.dimensions is not None:
            import numpy as np  # a worker that generates has none

            vectors = vectors[:, : owner.request.dimensions]
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        raw = vectors.astype("<f4", copy=False).tobytes()
        if encoding == "float":
            data = json.dumps(vectors.tolist(), separators=(",", ":"))
        else:
            data = '""' if encoding == "raw" else f'"{base64.b64encode(raw).decode("ascii")}"'
        chunks = owner.request.chunks
        counts = "" if chunks is None else f',"chunks":{json.dumps([len(each) for each in chunks])}'
        # Written by hand: json.dumps would look through every character of the block for one to escape.
        block = (
            f'{{"dtype":"float32","shape":[{vectors.shape[0]},{vectors.shape[1]}],'
            f'"encoding":"{encoding}","data":{data}}}{counts}'
        )
        return Finished(owner.job, self._around(owner, block), raw if encoding == "raw" else None)

    def _same_for_all(self, info: EngineInfo) -> str:
        if self._same is None or self._same[0] is not info:  # to hash all that is known of a model takes longer
            self._same = info, _same_for_all(info, self._worker)
        return self._same[1]

    def _around(self, owner: OpenEmbedding, block: str) -> bytes:
        result = (
            f'{{"object":"embedding","embeddings":{block},'
            f'"usage":{{"prompt_tokens":{owner.tokens},"truncated_texts":{owner.truncated},'
            f'"truncated_tokens":{owner.lost}}},{self._same_for_all(owner.model)}'
        )
        if energy := _energy_of(owner):
            result = f"{result[:-1]},{json.dumps(energy, separators=(',', ':'))[1:]}"  # into the provenance
        result += "}"
        return result.encode()


def _sparse_json(vector: SparseVector) -> str:
    """With numbers that are the vector's own to the bit: float32 in the fewest digits."""
    indices, values = (",".join(each.astype(str).tolist()) for each in (vector.indices, vector.values))
    return f'{{"indices":[{indices}],"values":[{values}]}}'


class RerankResults:
    """Results of one worker's rerankers."""

    def __init__(self, worker: str) -> None:
        self._worker = worker

    def of(self, owner: OpenEmbedding) -> Finished:
        """The documents by their scores; of two that score alike the earlier one first."""
        request, scores = owner.request, owner.vectors[:, 0].tolist()
        order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[: request.top_n]
        ranked = [
            {"index": index, "relevance_score": scores[index]}
            | ({"document": {"text": request.documents[index]}} if request.return_documents else {})
            for index in order
        ]
        usage = {"prompt_tokens": owner.tokens, "truncated_documents": owner.truncated, "truncated_tokens": owner.lost}
        result = {"object": "rerank", "results": ranked, "usage": usage}
        provenance = _provenance(owner.model, self._worker) | _energy_of(owner)
        result |= {"model": owner.model.model, "provenance": provenance}
        return Finished(owner.job, json.dumps(result, separators=(",", ":")).encode())


class GenerationResults:
    """Results of one worker's generation engine."""

    def __init__(self, info: EngineInfo, worker: str) -> None:
        self._provenance = _provenance(info, worker)

    def of(self, event: Generated) -> bytes:
        """What was made, be it the whole of it or as far as it came."""
        usage = {
            "prompt_tokens": event.prompt_tokens,
            "completion_tokens": event.completion_tokens,
            "cached_tokens": event.cached_tokens,
            "reasoning_tokens": event.reasoning_tokens,
        }
        energy = _energy(event.energy_j, len(event.answers), event.completion_tokens)
        first, *more = map(_choice, event.answers)
        result: dict[str, Any] = {
            "object": "generation",
            **first,
            "model": event.model,
            "usage": usage,
            "timings": {"first_token_s": round(event.first_token_s, 6), "total_s": round(event.total_s, 6)},
            "provenance": self._provenance | {"fingerprint": event.fingerprint, "note": event.note} | energy,
            "sampling": dict(event.sampling),
        }
        if more:
            result["more_choices"] = more
        return json.dumps(result, separators=(",", ":")).encode()


def _choice(answer: Answer) -> dict[str, Any]:
    """The contract's `Choice`; what is not there is not named."""
    choice: dict[str, Any] = {"text": answer.text, "finish_reason": answer.finish_reason}
    if answer.reasoning is not None:
        choice["reasoning_content"] = answer.reasoning
    if answer.calls:
        choice["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.calls
        ]
    if answer.logprobs is not None:
        choice["logprobs"] = [
            _likely(each) | ({"top_logprobs": [_likely(other) for other in each.others]} if each.others else {})
            for each in answer.logprobs
        ]
    return choice


def _likely(token: Likely) -> dict[str, Any]:
    """JSON has no infinity; of a token that cannot come the logarithm is a number as small as any that can."""
    told: dict[str, Any] = {"token": token.token, "logprob": round(max(token.logprob, _LEAST_LOGPROB), 6)}
    return told if token.raw is None else told | {"bytes": list(token.raw)}
