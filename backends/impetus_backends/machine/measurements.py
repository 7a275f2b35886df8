"""How fast a device is here, measured against another and remembered: what a machine is good at is not looked up.

Knows two loaded backends and a clock. A measurement holds for a chip, a build of the operating system, a model and the
versions of the libraries, and is made again when any of them changes.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.cache import cache_folder, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from impetus_backends.embedding.devices.backend import EmbeddingBackend
    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.machine.hardware import Hardware

BATCH_TEXTS = 32
_SHORTEST, _LONGEST = 16, 94
"""Evenly spread over the batch: 55 tokens on average, as in a corpus of documentation."""
ROUNDS = 7
_ENOUGH_S, _FEWEST_ROUNDS = 10.0, 3
"""A machine that is slow to run all rounds has the difference shown by fewer."""
_PACKAGES = ("coreai-core", "coremltools", "mlx", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a measurement holds for."""

    chip: str
    build: str
    """The operating system's, `25C56`."""
    fingerprint: str
    """The model's: weights, pooling, tokenizer."""
    packages: tuple[str, ...]
    """`name version` of each library that is installed."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Median seconds for the standard batch, by backend."""

    conditions: Conditions
    model: str
    seconds: tuple[tuple[str, float], ...]
    measured_at: str
    """ISO 8601, UTC."""

    def faster(self, one: str, other: str) -> bool | None:
        """Whether the first was faster than the second; None where one of them was not measured."""
        seconds = dict(self.seconds)
        if one not in seconds or other not in seconds:
            return None
        return seconds[one] < seconds[other]

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in self.seconds)
        return f"measured here on {self.measured_at[:10]}, a batch of {BATCH_TEXTS} texts: {figures}"


def conditions(hardware: Hardware, fingerprint: str) -> Conditions:
    """Those of this moment."""
    return Conditions(hardware.chip, hardware.build, fingerprint, _installed())


def _installed() -> tuple[str, ...]:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def standard_batch(vocabulary: int, longest: int) -> list[np.ndarray]:
    """The token rows that are timed: int32, always the same. Which tokens they are changes no device's time."""
    random = np.random.default_rng(0)
    lengths = np.linspace(_SHORTEST, _LONGEST, BATCH_TEXTS).round().astype(int).clip(max=longest)
    return [random.integers(0, vocabulary, length, dtype=np.int32) for length in lengths]


def measure(
    backends: Sequence[EmbeddingBackend],
    rows: Sequence[np.ndarray],
    *,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[tuple[str, float], ...]:
    """The median seconds of each loaded backend for these rows, after one run that does not count.

    Each round runs all of them, so that whatever else the machine does slows them alike. Raises what a backend raises.
    """
    took: dict[str, list[float]] = {backend.name: [] for backend in backends}
    begun = clock()
    for number in range(rounds + 1):
        if number > _FEWEST_ROUNDS and clock() - begun > _ENOUGH_S:
            break
        for backend in backends:
            started = clock()
            backend.embed(rows)
            if number:
                took[backend.name].append(clock() - started)
    return tuple((name, statistics.median(seconds)) for name, seconds in took.items())


def compare(
    backends: Sequence[EmbeddingBackend],
    config: EmbeddingConfig,
    *,
    under: Conditions,
    model: str,
    clock: Callable[[], float] = time.perf_counter,
) -> Measurement:
    """The loaded backends of one model, timed on the standard batch. Raises what a backend raises."""
    rows = standard_batch(config.encoder.vocab_size, config.text.max_tokens)
    seconds = measure(backends, rows, clock=clock)
    return Measurement(under, model, seconds, datetime.now(UTC).isoformat(timespec="seconds"))


class MeasurementCache:
    """The measurements of this machine, one small JSON file each. What cannot be read counts as never measured."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or cache_folder() / "measurements"

    def find(self, wanted: Conditions) -> Measurement | None:
        found = _read(self._file(wanted))
        return found if found is not None and found.conditions == wanted else None

    def latest(self, hardware: Hardware, models: Sequence[str]) -> Measurement | None:
        """The newest for a model by one of its names, for who has not read its weights and knows no fingerprint."""
        fitting = [
            found
            for file in (sorted(self._folder.glob("*.json")) if self._folder.is_dir() else ())
            if (found := _read(file)) is not None
            and found.model in models
            and found.conditions == conditions(hardware, found.conditions.fingerprint)
        ]
        return max(fitting, key=lambda found: found.measured_at, default=None)

    def keep(self, made: Measurement) -> None:
        """Remembers it; raises `OSError` where nothing can be written."""
        write_whole(self._file(made.conditions), json.dumps(asdict(made), indent=2) + "\n")

    def _file(self, wanted: Conditions) -> Path:
        digest = hashlib.sha256(json.dumps(asdict(wanted)).encode()).hexdigest()
        return self._folder / f"{digest[:16]}.json"


def _read(file: Path) -> Measurement | None:
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        held = content["conditions"]
        return Measurement(
            Conditions(
                str(held["chip"]),
                str(held["build"]),
                str(held["fingerprint"]),
                tuple(str(package) for package in held["packages"]),
            ),
            str(content["model"]),
            tuple((str(name), _positive(seconds)) for name, seconds in content["seconds"]),
            str(content["measured_at"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _positive(seconds: Any) -> float:
    value = float(seconds)
    if not 0 < value < float("inf"):
        raise ValueError(f"{value} is no time")
    return value
