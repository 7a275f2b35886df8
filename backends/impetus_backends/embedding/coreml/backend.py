"""`CoreMLEmbeddingBackend`: converts once, compiles once, and sorts every batch into the buckets of its package.

Knows nothing of macOS: the device is handed to it. It serves as `ane` only if Core ML's own plan places at least 90 %
of the cost of every bucket on the Neural Engine; otherwise another backend does the work faster.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from impetus_backends.embedding.coreml import package
from impetus_backends.embedding.coreml.buckets import Bucket, Call, choose, plan
from impetus_backends.embedding.coreml.cache import PACKAGE, PackageCache, Recipe, make_whole
from impetus_backends.embedding.coreml.device import Placement
from impetus_backends.embedding.encoder import pad
from impetus_backends.embedding.weights import fingerprint
from impetus_backends.errors import BackendError, BackendUnavailableError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from impetus_backends.embedding.config import EmbeddingConfig
    from impetus_backends.embedding.coreml.device import Device, Predictor

LEAST_ON_THE_NEURAL_ENGINE = 0.9
_LEAST_AGREEMENT = 0.999
_RING = 4
"""Core ML has been seen to read its input after predict returned: so many calls lie between two uses."""
_PREPARED = "prepared.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """What the calls of one bucket took so far."""

    calls: int = 0
    rows: int = 0
    seconds: float = 0.0

    def after(self, rows: int, seconds: float) -> Timing:
        return Timing(self.calls + 1, self.rows + rows, self.seconds + seconds)


class _Loaded:
    """One bucket, ready to run."""

    def __init__(self, bucket: Bucket, predict: Predictor) -> None:
        shape = (bucket.batch, bucket.length)
        self.predict = predict
        self.timing = Timing()
        self._ring: Iterator[dict[str, np.ndarray]] = cycle(
            [
                {
                    "ids": np.zeros(shape, np.int32),
                    "positions": np.zeros(shape, np.int32),
                    "mask": np.ones(shape, np.float32),
                }
                for _ in range(_RING)
            ]
        )

    def next_inputs(self) -> dict[str, np.ndarray]:
        return next(self._ring)


class CoreMLEmbeddingBackend:
    """Core ML on a device. One thread must load and use it."""

    def __init__(
        self,
        config: EmbeddingConfig,
        device: Callable[[], Device],
        *,
        name: str = "coreml",
        cache: PackageCache | None = None,
        buckets: Sequence[Bucket] | None = None,
    ) -> None:
        """`device` makes the device when the backend is loaded. `buckets` and full float16 unless another package was
        preferred in the cache."""
        self.name = name
        self.device = name
        self.precision = "fp16"
        self.note: str | None = None
        self.placement: dict[Bucket, Placement] = {}
        """By bucket; empty where the device has no plan to tell."""
        self._config = config
        self._make_device = device
        self._cache = cache or PackageCache()
        self._buckets = tuple(buckets or ())
        self._loaded: dict[Bucket, _Loaded] = {}

    @property
    def timings(self) -> dict[Bucket, Timing]:
        return {bucket: loaded.timing for bucket, loaded in self._loaded.items()}

    def load(self) -> None:
        """Converts, compiles and loads what is not in the cache; raises `BackendUnavailableError`, with figures, where
        any of that fails or too little of the cost is placed on the Neural Engine, `ModelError` for bad files."""
        device = self._make_device()
        recipe = self._recipe()
        entry = self._cache.find(recipe) or self._convert(recipe)
        with _or_unavailable(f"use the package in {entry}"):
            compiled, self.placement = self._prepare(device, entry, recipe.buckets)
        self._check_placement()
        for bucket in recipe.buckets:
            with _or_unavailable(f"load the function {bucket.function}"):
                self._loaded[bucket] = _Loaded(bucket, device.load(compiled, bucket.function))
        self._buckets = recipe.buckets
        self.device, self.note = device.label, device.note
        self.precision = "fp16" if recipe.mode == "none" else recipe.mode
        if self.placement:
            least = min(each.neural_engine for each in self.placement.values())
            self.note = f"the compute plan places {least:.0%} of the cost on the Neural Engine"
            self._check_buckets()

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The vectors of token rows, in their order; raises `RequestError` for a row that the model cannot read."""
        assert self._loaded, "load() comes first"
        if not rows:
            pad(self._config.encoder, rows)
        vectors = np.empty((len(rows), self._config.encoder.hidden_size), dtype=np.float32)
        for call in plan([len(row) for row in rows], self._buckets):
            vectors[list(call.rows)] = self._run(call, rows)
        return vectors

    def _run(self, call: Call, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The vectors of the rows that the call takes, in its order."""
        bucket, loaded = call.bucket, self._loaded[call.bucket]
        chosen = [rows[row] for row in call.rows]
        batch = pad(self._config.encoder, chosen, batch=bucket.batch, length=bucket.length)
        inputs = loaded.next_inputs()
        for name in inputs:
            np.copyto(inputs[name], getattr(batch, name))
        started = time.perf_counter()
        made = loaded.predict(inputs)
        loaded.timing = loaded.timing.after(len(chosen), time.perf_counter() - started)
        if made.shape != (bucket.batch, self._config.encoder.hidden_size):
            raise BackendError(
                f"the bucket {bucket} returned {made.shape} and not ({bucket.batch}, "
                f"{self._config.encoder.hidden_size}): Core ML has dropped or merged rows"
            )
        return made[: len(chosen)]

    def _recipe(self) -> Recipe:
        model = fingerprint(self._config)
        if self._buckets:
            return Recipe(model, "none", self._buckets)
        return self._cache.preferred(model) or Recipe(model, "none", choose(self._config.text.max_tokens))

    def _convert(self, recipe: Recipe) -> Path:
        if recipe.calibration:
            raise BackendUnavailableError(
                "the package preferred for this model was calibrated and is gone: run `impetus-worker convert` again"
            )
        _log.info("converting the model for Core ML, once: %s", ", ".join(map(str, recipe.buckets)))

        def tell(step: str, share: float) -> None:
            _log.info("%3.0f %% %s", 100 * share, step)

        def write(folder: Path) -> None:
            package.build(self._config, recipe.buckets, folder / PACKAGE, mode=recipe.mode, progress=tell)

        with _or_unavailable("convert the model"):
            return self._cache.add(recipe, write)

    def _prepare(self, device: Device, entry: Path, buckets: Sequence[Bucket]) -> tuple[Path, dict[Bucket, Placement]]:
        """What the device compiled and where it means to run it: found out once a package and system."""
        folder = entry / f"{device.label}-{device.version}"

        def write(draft: Path) -> None:
            _log.info("compiling the package for this machine, once")
            with _or_unavailable("compile the package"):
                compiled = device.compile(entry / PACKAGE, draft)
            found = {}
            for bucket in buckets:
                with _or_unavailable(f"read the compute plan of {bucket}"):
                    placement = device.placement(entry / PACKAGE, compiled, bucket.function)
                if placement is not None:
                    found[str(bucket)] = asdict(placement)
            # Relative, for the folder is about to be renamed.
            told = {"compiled": os.path.relpath(compiled, draft), "placement": found}
            (draft / _PREPARED).write_text(json.dumps(told, indent=2))

        if not folder.is_dir():
            make_whole(folder, write)
        told = json.loads((folder / _PREPARED).read_text())
        placement = {bucket: Placement(**told["placement"][str(bucket)]) for bucket in buckets if told["placement"]}
        return (folder / told["compiled"]).resolve(), placement

    def _check_placement(self) -> None:
        low = {bucket: each for bucket, each in self.placement.items() if not _earned(each)}
        if low:
            shares = ", ".join(
                f"{bucket}: {each.neural_engine:.0%} (CPU {each.cpu:.0%}, GPU {each.gpu:.0%})"
                for bucket, each in low.items()
            )
            raise BackendUnavailableError(
                f"Core ML places too little of the cost on the Neural Engine, and "
                f"{LEAST_ON_THE_NEURAL_ENGINE:.0%} is needed: {shares}"
            )

    def _check_buckets(self) -> None:
        """Runs every bucket, full: row by row it must agree with the longest, which the golden check has compared.

        Core ML has been seen to make one row of a batch. And a first call is slow, so none should be left to a job.
        """
        longest = max(self._loaded, key=lambda bucket: (bucket.length, -bucket.batch))
        random = np.random.default_rng(1)
        for bucket in self._loaded:
            sizes = np.linspace(bucket.length, min(3, bucket.length), bucket.batch).astype(int)
            rows = [random.integers(0, self._config.encoder.vocab_size, size, dtype=np.int32) for size in sizes]
            with _or_unavailable(f"run the bucket {bucket}"):
                together = self._run(Call(bucket, tuple(range(len(rows)))), rows)
                for row in {0, len(rows) // 2, len(rows) - 1}:
                    alone = self._run(Call(longest, (row,)), rows)[0]
                    lengths = np.linalg.norm(alone) * np.linalg.norm(together[row])
                    cosine = float(alone @ together[row] / max(lengths, 1e-12))
                    if not cosine >= _LEAST_AGREEMENT:
                        raise BackendUnavailableError(
                            f"the buckets {bucket} and {longest} disagree on the same text: cosine {cosine:.6f}, and "
                            f"{_LEAST_AGREEMENT} is needed"
                        )
        for loaded in self._loaded.values():
            loaded.timing = Timing()


def _earned(placement: Placement) -> bool:
    return placement.neural_engine >= LEAST_ON_THE_NEURAL_ENGINE


def needed_bytes(config: EmbeddingConfig, buckets: Sequence[Bucket]) -> int:
    """About how much memory the backend takes: float16 weights, once mapped and once more for every bucket, as each
    loaded function has been seen to keep its own (apple/coremltools#2351), and the widest tensors of each."""
    encoder = config.encoder
    hidden, wide = encoder.hidden_size, encoder.intermediate_size
    weights = (encoder.vocab_size + encoder.position_rows) * hidden
    weights += encoder.layers * (4 * hidden * hidden + 2 * hidden * wide)
    tensors = sum(b.batch * b.length * (4 * hidden + 2 * wide + 2 * encoder.heads * b.length) for b in buckets)
    return 2 * (weights * (1 + len(buckets)) + tensors)


@contextlib.contextmanager
def _or_unavailable(what: str) -> Iterator[None]:
    """Turns whatever a device raises into `BackendUnavailableError`, saying what was tried."""
    try:
        yield
    except (BackendUnavailableError, ModelError):
        raise
    except Exception as error:
        raise BackendUnavailableError(f"could not {what}: {type(error).__name__}: {error}") from error
