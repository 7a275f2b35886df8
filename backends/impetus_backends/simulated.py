"""Engines without models, for tests of scheduling and experiments with fleets. Never chosen automatically.

Time follows a stated model, t = a + b * padded tokens; results are deterministic, and say that they are simulated.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from impetus_backends.embedding.budget import USUAL
from impetus_backends.embedding.engine import EmbeddingEngine
from impetus_backends.embedding.texts.tokens import EncodedText, chunk_tokens
from impetus_backends.errors import RequestError
from impetus_backends.protocol import (
    Answer,
    EngineInfo,
    Event,
    Generated,
    GenerationWork,
    Likely,
    Progress,
    Rejected,
    Spans,
    Started,
    Work,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from impetus_backends.engine_config import EngineConfig

NOTE = "simulated: no model ran, and neither vectors nor texts mean anything"
MAX_TOKENS = 256
DIMENSIONS = 384
FAULTS = {"simulate:crash": 3, "simulate:hang": 4, "simulate:error": 5}
"""Words that kill the engine, hang it, or fail their batch: how a worker's recovery is tested."""
_FAULT_TOKENS = {word.encode(): token for word, token in FAULTS.items()}
_VOCABULARY = 30_000
_STATED = (64, 4096)
"""Tokens of the batches whose times an engine says before any ran."""
_WORDS = ("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven", "islet", "jetty", "knoll", "lagoon")


class SimulatedTextEncoder:
    """`TextEncoder` without files: a token is a word's hash, between a first and a last token as in BERT."""

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self.max_tokens = max_tokens

    def prompt(self, input_type: Literal["query", "document"] | None = None, name: str | None = None) -> str:
        """It has none."""
        if name is not None:
            raise RequestError("has no prompts")
        return ""

    def encode(self, texts: Sequence[str], *, prompt: str | None = None) -> list[EncodedText]:
        """One row a text, in order, cut to `max_tokens`."""
        return [self._row((prompt or "") + text) for text in texts]

    def encode_chunks(
        self,
        texts: Sequence[tuple[str, Spans]],
        *,
        prompt: str | None = None,
    ) -> list[EncodedText]:
        """The same without a prompt, and which tokens each chunk has, of which it is told where it is in the text."""
        rows = self.encode([text for text, _ in texts])
        return [
            replace(row, chunks=chunk_tokens([word.span() for word in re.finditer(r"\S+", text)], chunks, 1))
            for row, (text, chunks) in zip(rows, texts, strict=True)
        ]

    def _row(self, text: str) -> EncodedText:
        room = self.max_tokens - 2
        # What is beyond the room stays one piece: there is no need to split 10 MB.
        words = text.encode("utf-8", "surrogatepass").split(maxsplit=room)
        ids = [1, *(_FAULT_TOKENS.get(word) or 6 + zlib.crc32(word) % (_VOCABULARY - 6) for word in words[:room]), 2]
        lost = 1 + words[room].count(b" ") if len(words) > room else 0
        return EncodedText(np.array(ids, dtype=np.int32), lost)


class SimulatedPairEncoder:
    """`PairEncoder` without files: the tokens of a query and of a document, each with an end."""

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self.max_tokens = max_tokens
        self._texts = SimulatedTextEncoder(max_tokens // 2)

    def encode(
        self, query: str, documents: Sequence[str], *, max_document_tokens: int | None = None
    ) -> list[EncodedText]:
        """One row a document, in order, in which each of the two has half the room."""
        (asked,) = self._texts.encode([query])
        texts = self._texts if max_document_tokens is None else SimulatedTextEncoder(max_document_tokens + 2)
        return [
            EncodedText(np.concatenate([asked.ids, row.ids[1 : self.max_tokens // 2]]), asked.lost + row.lost)
            for row in texts.encode(documents)
        ]


class SimulatedEmbeddingBackend:
    """Sleeps `a_s + b_s * padded tokens` seconds and returns unit vectors drawn from a hash of each row."""

    name = "simulated"
    precision = "fp32"

    def __init__(
        self,
        a_s: float,
        b_s: float,
        *,
        dimensions: int = DIMENSIONS,
        sleep: Callable[[float], None] = time.sleep,
        device: str = "simulated",
    ) -> None:
        self.device = device
        self._a_s = a_s
        self._b_s = b_s
        self._dimensions = dimensions
        self._sleep = sleep

    def load(self) -> None:
        """Nothing to load."""

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        if not rows or min(map(len, rows)) < 1:
            raise RequestError("each row must have at least one token")
        self._obey_faults({int(token) for row in rows for token in row[row < 6]})
        self._sleep(self.batch_s(len(rows) * max(map(len, rows))))
        return self._drawn([np.asarray(row, dtype="<i4").tobytes() for row in rows])

    def embed_chunks(self, rows: Sequence[np.ndarray], chunks: Sequence[Spans]) -> np.ndarray:
        self.embed(rows)
        return self._drawn(
            [
                np.asarray([*row, *span], dtype="<i4").tobytes()
                for row, spans in zip(rows, chunks, strict=True)
                for span in (spans or [(0, len(row))])
            ]
        )

    def _drawn(self, seeds: Sequence[bytes]) -> np.ndarray:
        vectors = np.empty((len(seeds), self._dimensions), dtype=np.float32)
        for vector, seed in zip(vectors, seeds, strict=True):
            vector[:] = np.frombuffer(hashlib.shake_128(seed).digest(2 * self._dimensions), dtype="<i2")
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def batch_s(self, padded_tokens: int) -> float:
        """What a batch takes, as stated."""
        return self._a_s + self._b_s * padded_tokens

    def _obey_faults(self, tokens: set[int]) -> None:
        if FAULTS["simulate:crash"] in tokens:
            os.kill(os.getpid(), signal.SIGKILL)
        if FAULTS["simulate:hang"] in tokens:
            self._sleep(3600)
        if FAULTS["simulate:error"] in tokens:
            raise RuntimeError("a simulated error of the device")


class SimulatedRerankBackend(SimulatedEmbeddingBackend):
    """The same times, and for each row a score of 0 to 1 drawn from a hash of it."""

    def __init__(self, a_s: float, b_s: float, *, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(a_s, b_s, dimensions=2, sleep=sleep)

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        scores: np.ndarray = (super().embed(rows)[:, :1] + 1) / 2
        return scores


@dataclass(slots=True)
class _Running:
    work: GenerationWork
    admitted_s: float
    prompt_tokens: int
    seed: str
    length: int
    words: list[str] = field(default_factory=list)
    first_token_s: float | None = None
    streamed: int = 0


class SimulatedGenerationEngine:
    """`protocol.Engine` for generation: each step takes `a_s` seconds and gives every running request one word.

    The text begins with `[simulated]`, depends on the prompt and seed alone, and ends by itself after 24 to 63 words,
    unless the request says `ignore_eos`.
    """

    def __init__(
        self,
        info: EngineInfo,
        *,
        a_s: float,
        max_concurrent: int = 16,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._info = info
        self._a_s = a_s
        self._max_concurrent = max_concurrent
        self._sleep = sleep
        self._clock = clock
        self._waiting: list[_Running] = []
        self._running: list[_Running] = []
        self._events: list[Event] = []

    @property
    def info(self) -> EngineInfo:
        return self._info

    def admit(self, work: Work) -> None:
        if not isinstance(work, GenerationWork):
            self._events.append(Rejected(work.id, f"{self._info.model} generates text and makes no embeddings"))
            return
        prompt = work.prompt if work.prompt is not None else " ".join(each["content"] for each in work.messages or ())
        seed = f"{prompt}\0{work.seed}"
        asks_for = "a schema" if work.schema is not None else "n" if work.n > 1 else "tools" if work.tools else ""
        if asks_for:
            self._events.append(Rejected(work.id, f"{self._info.model} does nothing about {asks_for}"))
            return
        self._waiting.append(_Running(work, self._clock(), len(prompt.split()), seed, 24 + _hash(seed) % 40))

    def cancel(self, work_id: int) -> None:
        for queue in (self._waiting, self._running):
            for running in [running for running in queue if running.work.id == work_id]:
                queue.remove(running)
                self._events.append(self._ended(running, " ".join(running.words), "cancelled"))

    def pending(self) -> int:
        return len(self._waiting) + len(self._running) + len(self._events)

    def step(self) -> list[Event]:
        events, self._events = self._events, []
        while self._waiting and len(self._running) < self._max_concurrent:
            self._running.append(self._waiting.pop(0))
            events.append(Started(self._running[-1].work.id))
        if not self._running:
            return events
        self._sleep(self._a_s)
        for running in list(self._running):
            if running.first_token_s is None:
                running.first_token_s = self._clock() - running.admitted_s
            text, reason = _advance(running)
            if reason is not None:
                self._running.remove(running)
                events.append(self._ended(running, text, reason))
            elif running.work.stream and not running.work.stop:
                # With stop strings all of it is held back until the end: that much caution is enough here.
                events.append(Progress(running.work.id, text[running.streamed :]))
                running.streamed = len(text)
        return events

    def close(self) -> None:
        self._waiting.clear()
        self._running.clear()
        self._events.clear()

    def _ended(self, running: _Running, text: str, reason: str) -> Generated:
        logprobs = tuple(Likely(word, 0.0) for word in running.words) if running.work.logprobs else None
        return Generated(
            id=running.work.id,
            answers=(Answer(text, reason, logprobs=logprobs),),
            prompt_tokens=running.prompt_tokens,
            completion_tokens=len(running.words),
            first_token_s=running.first_token_s or 0.0,
            total_s=self._clock() - running.admitted_s,
            model=self._info.model,
            fingerprint=self._info.fingerprint,
            note=self._info.note,
        )


def _advance(running: _Running) -> tuple[str, str | None]:
    """One more word: (the text so far, why it ends if it does)."""
    count = len(running.words)
    running.words.append(_WORDS[_hash(f"{running.seed}\0{count}") % len(_WORDS)] if count else "[simulated]")
    text = " ".join(running.words)
    stops = [found for stop in running.work.stop if stop and (found := text.find(stop)) >= 0]
    if stops:
        return text[: min(stops)], "stop"
    if len(running.words) >= running.length and not running.work.ignore_eos:
        return text, "stop"
    return text, "length" if len(running.words) >= (running.work.max_tokens or MAX_TOKENS) else None


def open_simulated_embedding(
    config: EngineConfig,
    *,
    sleep: Callable[[float], None] = time.sleep,
    dimensions: int = DIMENSIONS,
    device: str = "simulated",
) -> EmbeddingEngine:
    """An embedding engine that answers to any model name it is given, with the times that the configuration states.

    `device`: what it imitates, `simulated ane` for one, as far as a worker's place in the fleet goes.
    """
    backend = SimulatedEmbeddingBackend(
        config.simulated_a_s, config.simulated_b_s, dimensions=dimensions, sleep=sleep, device=device
    )
    info = _info(config, "embedding", dimensions, MAX_TOKENS, device)
    return EmbeddingEngine(backend, replace(info, curve=tuple((each, backend.batch_s(each)) for each in _STATED)))


def open_simulated_rerank(config: EngineConfig, *, sleep: Callable[[float], None] = time.sleep) -> EmbeddingEngine:
    """A reranking engine that answers to any model name it is given, with the times that the configuration states."""
    backend = SimulatedRerankBackend(config.simulated_a_s, config.simulated_b_s, sleep=sleep)
    return EmbeddingEngine(backend, _info(config, "rerank", 1, MAX_TOKENS))


def open_simulated_generation(
    config: EngineConfig, *, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.perf_counter
) -> SimulatedGenerationEngine:
    """A generation engine that answers to any model name it is given, one word a step of `simulated_a_s` seconds."""
    return SimulatedGenerationEngine(
        _info(config, "generation", 0, 8192),
        a_s=config.simulated_a_s,
        max_concurrent=config.max_concurrent,
        sleep=sleep,
        clock=clock,
    )


def _info(config: EngineConfig, kind: str, dimensions: int, max_tokens: int, device: str = "simulated") -> EngineInfo:
    model = config.model or "simulated"
    aliases = dict.fromkeys((model, model.rpartition("/")[2], "simulated"))
    info = EngineInfo(
        kind=kind,
        backend="simulated",
        max_concurrent=config.max_concurrent,
        device=device,
        model=model,
        model_aliases=(*aliases, *config.more_models),
        fingerprint="simulated",
        precision="fp32",
        dimensions=dimensions,
        max_tokens=max_tokens,
        batch_tokens=USUAL["simulated"],
        note=NOTE,
    )
    others = tuple(replace(info, model=name, model_aliases=(name,)) for name in config.more_models)
    return replace(info, others=others)


def _hash(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))
