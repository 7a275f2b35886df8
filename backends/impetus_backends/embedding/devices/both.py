"""Two devices of one machine at once: the short texts of a batch on one, the long ones on the other.

Each device has a curve, fitted to what it took when it loaded and corrected by each batch since: seconds = call +
token * tokens + square * sum of squared lengths. Of all places to cut a batch, sorted by length, that one is taken
where the later of the two ends soonest, whichever of them gets the short part; one alone runs all of it where that is
sooner. So no rule says which device is for short texts: their curves do. Each has a thread of its own, which loads it
and runs it. Whether Core ML and MLX let each other run meanwhile is unverified: nobody has run this on a Mac.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from impetus_backends.embedding.encoder import packable
from impetus_backends.embedding.folder.fitting import open_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from impetus_backends.embedding.devices.backend import EmbeddingBackend
    from impetus_backends.embedding.folder.config import EmbeddingConfig

_TIMED = ((1, 16), (1, 512), (8, 64), (32, 32), (32, 128), (4, 512))
"""Texts and their tokens, of which a curve is made when a device has loaded."""
_LEARNING_RATE, _FORGETTING_RATE = 0.2, 0.02
"""Of what a batch showed, and of what is believed of a device that gets no part of one: else whoever was slow for a
while, as when it was hot, would never be tried again."""
_MOST_AT_ONCE = 2.0
"""No batch says more than that a device is so much faster or slower: one that lasted over a sleep says nothing."""
_LEAST_S = 1e-6


@dataclass(frozen=True, slots=True)
class Curve:
    """What a call takes a device, in seconds."""

    call_s: float
    token_s: float
    square_s: float = 0.0

    def parts(self, lengths: np.ndarray) -> np.ndarray:
        """The part of each text."""
        tokens = lengths.astype(np.float64)
        return self.token_s * tokens + self.square_s * tokens**2

    def seconds(self, lengths: np.ndarray) -> float:
        return self.call_s + float(self.parts(lengths).sum()) if len(lengths) else 0.0

    def corrected(self, factor: float) -> Curve:
        return Curve(self.call_s * factor, self.token_s * factor, self.square_s * factor)


def fit(measured: Sequence[tuple[Sequence[int], float]]) -> Curve:
    """The curve through (lengths, seconds): of squares of relative errors the least, no part of it negative."""
    table = np.array([[1.0, sum(each), sum(length**2 for length in each)] for each, _ in measured])
    seconds = np.array([max(took, _LEAST_S) for _, took in measured])
    scaled, ones, kept = table / seconds[:, None], np.ones(len(seconds)), [0, 1, 2]
    while True:
        found, *_ = np.linalg.lstsq(scaled[:, kept], ones)
        if not kept or min(found) >= 0:
            break
        del kept[int(np.argmin(found))]
    values = dict(zip(kept, map(float, found), strict=True))
    return Curve(values.get(0, 0.0), values.get(1, 0.0), values.get(2, 0.0))


@dataclass(frozen=True, slots=True)
class Split:
    """Which of a batch's texts each device gets, by position, and when both have ended."""

    rows: tuple[np.ndarray, np.ndarray]
    seconds: float


def split(lengths: Sequence[int] | np.ndarray, curves: tuple[Curve, Curve]) -> Split:
    """The cut by length at which the later device ends soonest."""
    order, best = np.argsort(np.asarray(lengths), kind="stable"), None
    sizes = np.asarray(lengths)[order]
    for short, long in ((0, 1), (1, 0)):
        first = np.concatenate(([0.0], np.cumsum(curves[short].parts(sizes)))) + curves[short].call_s
        last = np.concatenate((np.cumsum(curves[long].parts(sizes)[::-1])[::-1], [0.0])) + curves[long].call_s
        first[0], last[-1] = 0.0, 0.0
        both = np.maximum(first, last)
        at = int(np.argmin(both))
        if best is None or both[at] < best.seconds:
            parts = (order[:at], order[at:])
            best = Split((parts[short], parts[long]), float(both[at]))
    assert best is not None
    return best


class BothBackend:
    """`EmbeddingBackend` of two that serve the same model."""

    def __init__(
        self,
        name: str,
        config: EmbeddingConfig,
        devices: tuple[EmbeddingBackend, EmbeddingBackend],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = name
        self.note: str | None = None
        self.packs = packable(config)
        self._config = config
        self._devices = devices
        self._clock = clock
        self._threads = tuple(ThreadPoolExecutor(1, f"embedding-{device.name}") for device in devices)
        self._loaded: tuple[Curve, Curve] | None = None
        self._slower = [1.0, 1.0]
        """Than when they loaded."""

    @property
    def curves(self) -> tuple[Curve, Curve]:
        """Of now; once it has loaded."""
        assert self._loaded is not None, "load() comes first"
        one, other = (curve.corrected(by) for curve, by in zip(self._loaded, self._slower, strict=True))
        return one, other

    @property
    def device(self) -> str:
        return " + ".join(device.device for device in self._devices)

    @property
    def precision(self) -> str:
        return "+".join(dict.fromkeys(device.precision for device in self._devices))

    @property
    def memory_bytes(self) -> int:
        """About what both take; one that cannot say, its weights."""
        needed = (getattr(device, "memory_bytes", None) for device in self._devices)
        return sum(each or open_weights(self._config).size_bytes() for each in needed)

    def load(self) -> None:
        """Raises as the devices do: both are needed."""
        for thread, device in zip(self._threads, self._devices, strict=True):
            thread.submit(device.load).result()
        one, other = (
            thread.submit(self._timed, device).result()
            for thread, device in zip(self._threads, self._devices, strict=True)
        )
        self._loaded = one, other
        told = "; ".join(
            f"{device.name} {curve.call_s * 1e3:.1f} ms + {curve.token_s * 1e6:.1f} us a token"
            for device, curve in zip(self._devices, self._loaded, strict=True)
        )
        self.note = f"a batch is cut by length where both end soonest: {told}"

    def _timed(self, device: EmbeddingBackend) -> Curve:
        longest, random, measured = self._config.text.max_tokens, np.random.default_rng(0), []
        for texts, tokens in _TIMED:
            length = min(tokens, longest)
            rows = list(random.integers(0, self._config.encoder.vocab_size, (texts, length), dtype=np.int32))
            device.embed(rows)  # the first may compile
            measured.append(([length] * texts, self._run(device, rows)[1]))
        return fit(measured)

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """As either would, in their order. What one raises is raised when both have ended."""
        lengths = np.array([len(row) for row in rows])
        parts = split(lengths, self.curves).rows
        began = [
            thread.submit(self._run, device, [rows[at] for at in part]) if len(part) else None
            for thread, device, part in zip(self._threads, self._devices, parts, strict=True)
        ]
        made: np.ndarray = np.empty((len(rows), self._config.dimensions), np.float32)
        failed: BaseException | None = None
        for which, (running, part) in enumerate(zip(began, parts, strict=True)):
            if running is None:
                self._slower[which] += _FORGETTING_RATE * (1 - self._slower[which])
                continue
            if (error := running.exception()) is not None:
                failed = failed or error
                continue
            made[part], took_s = running.result()
            self._learn(which, lengths[part], took_s)
        if failed is not None:
            raise failed
        return made

    def _run(self, device: EmbeddingBackend, rows: list[np.ndarray]) -> tuple[np.ndarray, float]:
        began = self._clock()
        made = device.embed(rows)
        return made, self._clock() - began

    def _learn(self, which: int, lengths: np.ndarray, took_s: float) -> None:
        """A device that is hot, or has other work, gets less."""
        factor = max(took_s, _LEAST_S) / max(self.curves[which].seconds(lengths), _LEAST_S)
        factor = min(max(factor, 1 / _MOST_AT_ONCE), _MOST_AT_ONCE)
        self._slower[which] *= 1 + _LEARNING_RATE * (factor - 1)
