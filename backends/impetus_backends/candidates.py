"""The candidates for embeddings, opened one by one until one serves; what became of each is said.

Where Core ML or Core AI opens and nothing was measured yet, it is timed against the next candidate that can serve, and
the fastest serves: the label "ane" is earned here, and before that in the backend, which refuses where too little of
the model's cost is placed on the Neural Engine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from impetus_backends import models
from impetus_backends.embedding import engine
from impetus_backends.embedding.budget import is_measured, measure_batches
from impetus_backends.embedding.devices import backends
from impetus_backends.embedding.devices.packages.backend import PackagedEmbeddingBackend
from impetus_backends.embedding.devices.packages.fitter import Fitter
from impetus_backends.embedding.encoder import refuses_chunks
from impetus_backends.embedding.engine import EmbeddingEngine
from impetus_backends.embedding.folder.config import EmbeddingConfig, read_config
from impetus_backends.embedding.folder.fitting import open_weights
from impetus_backends.embedding.folder.reranker import read_reranker
from impetus_backends.embedding.folder.weights import fingerprint
from impetus_backends.engine_config import attempting
from impetus_backends.errors import BackendUnavailableError, ModelError
from impetus_backends.machine.energy import open_meter
from impetus_backends.machine.measurements import Conditions, Measurement, MeasurementCache, compare, conditions
from impetus_backends.machine.policy import (
    TO_BE_PROVEN,
    Absence,
    Choice,
    check_memory,
    embedding_choice,
    memory_limit_bytes,
    not_installed,
    without_excluded,
)
from impetus_backends.protocol import EngineInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from impetus_backends.embedding.devices.backend import EmbeddingBackend
    from impetus_backends.engine_config import Excluded, Fitting, OnAttempt
    from impetus_backends.machine.energy import Meter
    from impetus_backends.machine.hardware import Hardware

Opened: TypeAlias = "tuple[EmbeddingBackend, EmbeddingEngine]"


@dataclass(frozen=True, slots=True)
class Means:
    """What candidates are opened and timed with; tests bring their own."""

    cache: MeasurementCache = field(default_factory=MeasurementCache)
    make: Callable[[str, EmbeddingConfig], EmbeddingBackend] = backends.make_backend
    absence: Absence = not_installed
    clock: Callable[[], float] = time.perf_counter
    meter: Callable[[], Meter | None] = open_meter


class EmbeddingCandidates:
    """The backends that may serve one model on one machine. `reasons`: what became of those tried last."""

    def __init__(
        self,
        model_name: str,
        hardware: Hardware,
        means: Means | None = None,
        *,
        kind: str = "embedding",
        excluded: Sequence[Excluded] = (),
        longest_batch_s: float | None = None,
        fitting: Fitting | None = None,
        on_attempt: OnAttempt = lambda backend: None,
    ) -> None:
        """`kind`: `embedding` or `rerank`. `longest_batch_s`, `fitting`: as in `EngineConfig`. `excluded` are passed
        over; `on_attempt` as in `dispatcher.open_engine`.

        Raises `ModelError` where the model cannot be had.
        """
        self.reasons: list[str] = []
        self._excluded = excluded
        self._longest_batch_s = longest_batch_s
        self._fitting = fitting
        self._on_attempt = on_attempt
        self._hardware = hardware
        self._means = means or Means()
        self.files = models.resolve(model_name, listed=kind == "embedding")
        self._kind = kind
        self._model = (read_reranker if kind == "rerank" else read_config)(self.files.folder)

    def known(self, files: models.ModelFiles) -> EngineInfo:
        """What is known of the model, by the names in `files`, before it is loaded."""
        text, folder = self._model.text, str(files.folder)
        return EngineInfo(
            self._kind, "", "", files.name, files.aliases, "", "", folder=folder, max_tokens=text.max_tokens,
            dimensions=self._model.dimensions, outputs=self._model.outputs, no_sparse=self._model.no_sparse,
            refuses_chunks=refuses_chunks(self._model) if isinstance(self._model, EmbeddingConfig) else None,
        )  # fmt: skip

    def weights_bytes(self) -> int:
        """What its weights take in float32. Raises `ModelError` where they do not fit its configuration."""
        return open_weights(self._model).size_bytes()

    def open_best(self, choice: Choice, *, compared: bool) -> EmbeddingEngine:
        """The engine that serves; raises `BackendUnavailableError` with every reason where there is none.

        `compared`: what was measured here changes the order, and Core ML and Core AI must prove themselves where
        nothing was.
        """
        self.reasons, measured = [], None
        if compared and _unproven(without_excluded(choice, self._excluded).candidates):
            measured = self._means.cache.find(self._conditions())
            choice = embedding_choice(self._hardware, self._means.absence, measured)
        choice = without_excluded(choice, self._excluded)
        self.reasons += choice.reasons
        opened = self._open(choice.candidates)
        first = next(opened, None)
        if first is None:
            raise BackendUnavailableError(f"nothing here can serve {self._kind}: {'; '.join(self.reasons)}")
        if compared and measured is None and first[0].name in TO_BE_PROVEN:
            first = self._fastest(_to_compare(first, opened))
        backend, opened_engine = first
        info = self._with_its_batches(backend, opened_engine.info)
        if self._fitting is not None and isinstance(backend, PackagedEmbeddingBackend):
            fitter = Fitter(backend, self.files, self._fitting, memory_limit_bytes(self._hardware))
            backend.fit(fitter)
            fitter.start()
        return EmbeddingEngine(backend, replace(info, reasons=tuple(self.reasons)), meter=self._means.meter())

    def _with_its_batches(self, backend: EmbeddingBackend, info: EngineInfo) -> EngineInfo:
        """How many tokens of a batch suit the backend, if that is to be measured."""
        if self._longest_batch_s is None or not is_measured(backend) or "dense" not in info.outputs:
            return info
        vocabulary, longest = self._model.encoder.vocab_size, self._model.text.max_tokens
        try:
            with attempting(self._on_attempt, backend.name):
                curve = measure_batches(backend, vocabulary, longest, self._longest_batch_s, clock=self._means.clock)
        except Exception as error:  # noqa: BLE001 - it passed its golden check; what it cannot do now, jobs will tell
            self.reasons.append(f"{backend.name}: its batches could not be timed: {type(error).__name__}: {error}")
            return info
        self.reasons.append(f"{backend.name}: {curve.words}")
        return replace(info, batch_tokens=curve.chosen, curve=curve.points, measured=curve.words)

    def measure(self, choice: Choice) -> Measurement:
        """Core ML and Core AI timed against the best other candidate, and remembered.

        Raises `BackendUnavailableError` where there are no two to compare, `OSError` where it cannot be remembered.
        """
        unproven = _unproven(choice.candidates)
        opened = self._open((*unproven, *(name for name in choice.candidates if name not in unproven)))
        first = next(opened, None)
        found = _to_compare(first, opened) if first is not None else []
        if len(found) < 2 or found[0][0].name not in TO_BE_PROVEN:
            raise BackendUnavailableError(
                f"Core ML or Core AI and another backend are needed: {'; '.join(self.reasons)}"
            )
        try:
            made = self._compare([backend for backend, _ in found])
        except Exception as error:
            raise BackendUnavailableError(f"the measurement failed: {type(error).__name__}: {error}") from error
        self._means.cache.keep(made)
        return made

    def _open(self, order: Sequence[str]) -> Iterator[Opened]:
        """Those that load, fit the memory and pass the golden check, as they are asked for."""
        limit_bytes = memory_limit_bytes(self._hardware)
        for name in order:
            try:
                with attempting(self._on_attempt, name):
                    backend = self._means.make(name, self._model)
                    check_memory(getattr(backend, "memory_bytes", None), self._model.transformer, limit_bytes)
                    opened = engine.open_engine(backend, self.files, self._model)
            except BackendUnavailableError as error:
                self.reasons.append(f"{name}: {error}")
            except ModelError:
                raise  # every backend reads the same files
            except Exception as error:  # noqa: BLE001 - whatever a device's library raises, the next may serve
                self.reasons.append(f"{name}: {type(error).__name__}: {error}")
            else:
                self.reasons += opened.info.reasons
                yield backend, opened

    def _fastest(self, found: Sequence[Opened]) -> Opened:
        names = [backend.name for backend, _ in found]
        if len(found) == 1:
            self.reasons.append(
                f"{names[0]}: no other backend can serve here, and there is nothing to measure it against"
            )
            return found[0]
        *unproven, rival = names
        try:
            # Each answered its golden check alone: what dies now is laid at the door of what has yet to prove itself.
            with attempting(self._on_attempt, unproven[0]):
                made = self._compare([backend for backend, _ in found])
        except Exception as error:  # noqa: BLE001 - they passed their golden checks a moment ago; it is no proof
            tried = ", ".join(unproven)
            self.reasons.append(f"{tried}: the timed probe against {rival} failed: {type(error).__name__}: {error}")
            return self._keep(found[-1], found)
        try:
            self._means.cache.keep(made)
        except OSError as error:
            self.reasons.append(f"the measurement could not be kept, and will be made again: {error}")
        seconds = dict(made.seconds)
        # Where two are alike, what has proven itself serves.
        winner = min(reversed(found), key=lambda opened: seconds[opened[0].name])
        others = " and ".join(name for name in names if name != winner[0].name)
        self.reasons += [str(made), f"{winner[0].name}: faster than {others} here, and so it serves"]
        return self._keep(winner, found)

    @staticmethod
    def _keep(chosen: Opened, found: Sequence[Opened]) -> Opened:
        for opened in found:
            if opened is not chosen:
                opened[1].close()
        return chosen

    def _compare(self, loaded: Sequence[EmbeddingBackend]) -> Measurement:
        return compare(loaded, self._model, under=self._conditions(), model=self.files.name, clock=self._means.clock)

    def _conditions(self) -> Conditions:
        return conditions(self._hardware, fingerprint(self._model))


def _unproven(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name in TO_BE_PROVEN)


def _to_compare(first: Opened, others: Iterator[Opened]) -> list[Opened]:
    """What was opened, and what opens after it, up to the first that need not prove itself."""
    found = [first]
    while found[-1][0].name in TO_BE_PROVEN and (opened := next(others, None)) is not None:
        found.append(opened)
    return found
