"""Requests of some texts answered from a store, as far as it has them, and the rest computed.

Which model answers is known from the last result, for a minute: then it is asked again by computing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..contract import EmbeddingResult, EmbeddingUsage, VectorBlock
from .kept.store import Answer
from .works import prompting, text_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..contract import Provenance
    from .kept.store import AnswerStore

SURE_S = 60.0
"""So long what was computed last says which model is served."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """What is known of a request. `keys`: of each of its texts; `texts`: by key, each once; `found`: their answers, all
    by the model whose `provenance` this is."""

    keys: list[bytes]
    texts: dict[bytes, str]
    found: Mapping[bytes, Answer]
    provenance: Provenance | None

    @property
    def missing(self) -> list[str]:
        """The texts to be computed."""
        return [text for key, text in self.texts.items() if key not in self.found]

    def fits(self, result: EmbeddingResult) -> bool:
        """Whether the result for what was missing is by the model that made the rest."""
        return all(answer.fingerprint == result.provenance.fingerprint for answer in self.found.values())

    def answers(self, result: EmbeddingResult) -> dict[bytes, Answer]:
        """Those of a result for what was missing."""
        assert isinstance(result.embeddings, VectorBlock), "nothing sparse is asked for"
        rows = result.embeddings.packed_rows()
        missing = (key for key in self.texts if key not in self.found)
        model, fingerprint = result.model, result.provenance.fingerprint
        return {key: Answer(row, model, fingerprint) for key, row in zip(missing, rows, strict=True)}

    def whole(self, result: EmbeddingResult | None) -> EmbeddingResult:
        """The answer to all of the request. Its usage is that of what was computed now."""
        answers = {**self.found, **(self.answers(result) if result is not None else {})}
        first = answers[self.keys[0]]
        provenance = result.provenance if result is not None else self.provenance
        assert provenance is not None
        block = b"".join(answers[key].value for key in self.keys)
        return EmbeddingResult(
            model=first.model,
            embeddings=VectorBlock(shape=(len(self.keys), len(first.value) // 4), encoding="raw", data=block),
            usage=result.usage if result is not None else EmbeddingUsage(prompt_tokens=0),
            provenance=provenance,
        )


class Recall:
    """Answers of a store. Threads may share it. Raises what the store does."""

    def __init__(self, store: AnswerStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._served: dict[str | None, tuple[Provenance, float]] = {}
        """By the name that was asked for: who answered last, and when."""

    def look(self, payload: Mapping[str, Any]) -> Recalled:
        """What is known of a request's payload that was checked."""
        given = payload["input"]
        texts = [given] if isinstance(given, str) else list(given)
        options = payload.get("dimensions"), prompting(payload), payload.get("truncate", True)
        keys = [text_key(text, *options) for text in texts]
        by_key = dict(zip(keys, texts, strict=True))
        provenance, seen_at = self._served.get(payload.get("model"), (None, 0.0))
        if provenance is None or self._clock() - seen_at > SURE_S:
            return Recalled(keys, by_key, {}, None)
        return Recalled(keys, by_key, self._store.find(list(by_key), [provenance.fingerprint]), provenance)

    def keep(self, payload: Mapping[str, Any], recalled: Recalled, result: EmbeddingResult) -> None:
        """Notes the result for what was missing."""
        self._served[payload.get("model")] = (result.provenance, self._clock())
        self._store.keep(recalled.answers(result).items())
