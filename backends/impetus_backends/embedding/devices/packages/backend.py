"""`PackagedEmbeddingBackend`: converts once, compiles once, and sorts every batch into the buckets of its package.

Knows nothing of macOS: the device is handed to it, and so is the form of its packages. Where the device has a plan to
tell, it serves as `ane` only if that places at least 90 % of the cost of every bucket on the Neural Engine; otherwise
another backend does the work faster.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Protocol

from impetus_backends.embedding.devices.packages.buckets import (
    DEFAULT_COUNT,
    GUESSED_CALL_TOKENS,
    Bucket,
    suiting,
)
from impetus_backends.embedding.devices.packages.cache import PackageCache, Recipe, make_whole
from impetus_backends.embedding.devices.packages.device import Placement
from impetus_backends.embedding.devices.packages.form import size_of
from impetus_backends.embedding.devices.packages.runner import Runner, Timing
from impetus_backends.embedding.encoder import packable
from impetus_backends.embedding.folder.reranker import RerankerConfig
from impetus_backends.embedding.folder.weights import fingerprint
from impetus_backends.errors import BackendUnavailableError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from impetus_backends.embedding.devices.packages.device import Device
    from impetus_backends.embedding.folder.config import EmbeddingConfig

LEAST_ON_THE_NEURAL_ENGINE = 0.9
_PREPARED = "prepared.json"
_log = logging.getLogger(__name__)


class Shapes(Protocol):
    """What fits the shapes of a backend to the texts that it serves."""

    def count(self, rows: Sequence[np.ndarray]) -> None:
        """These are served."""

    def take(self) -> PackagedEmbeddingBackend | None:
        """A loaded and checked backend with better shapes, once."""
        ...

    def stop(self) -> None:
        """Does not wait."""


class PackagedEmbeddingBackend:
    """A package of the model on a device. One thread must load and use it."""

    def __init__(
        self,
        config: EmbeddingConfig,
        device: Callable[[], Device],
        cache: PackageCache,
        *,
        name: str,
        buckets: Sequence[Bucket] | None = None,
        mode: str = "none",
    ) -> None:
        """`device` makes the device when the backend is loaded. `buckets` and `mode` unless another package was
        preferred in the cache."""
        self.name = name
        self.device = name
        self.precision = "fp16"
        self.note: str | None = None
        self.placement: dict[Bucket, Placement] = {}
        """By bucket; empty where the device has no plan to tell."""
        self.make_device = device
        self.cache = cache
        self.config = config
        self._buckets = tuple(buckets or ())
        self._mode = mode
        self._runner: Runner | None = None
        self.recipe: Recipe | None = None
        """Of the package that is loaded."""
        self._shapes: Shapes | None = None

    @property
    def memory_bytes(self) -> int:
        """About how much it takes once loaded."""
        return needed_bytes(self.config, self._recipe().buckets)

    @property
    def packs(self) -> bool:
        """Whether it lays several texts in a row; final after `load`."""
        return any(bucket.packed for bucket in self.timings)

    @property
    def call_tokens(self) -> float | None:
        """What a call costs beside its tokens, in tokens; None where the device's times mean nothing."""
        return self._runner.call_tokens if self._runner else None

    @property
    def timings(self) -> dict[Bucket, Timing]:
        return self._runner.timings if self._runner else {}

    def load(self) -> None:
        """Converts, compiles and loads what is not in the cache; raises `BackendUnavailableError`, with figures, where
        any of that fails or too little of the cost is placed on the Neural Engine, `ModelError` for bad files."""
        if isinstance(self.config, RerankerConfig):
            raise BackendUnavailableError(f"{self.name} runs no rerankers; mlx and cpu do")
        if self.config.encoder.experts:
            raise BackendUnavailableError(f"{self.name} runs no experts; mlx and cpu do")
        if "dense" not in self.config.outputs:
            raise BackendUnavailableError(
                f"{self.name} makes no sparse embeddings, for its packages end in pooled vectors; mlx and cpu do"
            )
        device = self.make_device()
        recipe = self._recipe()
        entry = self.cache.find(recipe) or self._convert(recipe)
        with _or_unavailable(f"use the package in {entry}"):
            compiled, self.placement = self._prepare(device, entry, recipe.buckets)
        self._check_placement(self.cache.form.too_large(size_of(self.cache.package(entry)), device.version))
        functions = {}
        for bucket in recipe.buckets:
            with _or_unavailable(f"load the function {bucket.function}"):
                functions[bucket] = device.load(compiled, bucket.function)
        runner = Runner(self.config, functions)
        self.device = device.label
        self.precision = "fp16" if recipe.mode == "none" else recipe.mode
        notes = [device.note] if device.note else []
        if self.placement:
            least = min(each.neural_engine for each in self.placement.values())
            notes.append(f"the compute plan places {least:.0%} of the cost on the Neural Engine")
        if device.timed:
            with _or_unavailable("run the package"):
                took = runner.check()
            notes.append(
                f"a call takes {_calls(took, runner.in_flight)}, and {runner.call_tokens:.0f} tokens beside its own"
            )
        self.note = "; ".join(notes) or None
        self._runner, self.recipe = runner, recipe

    def embed(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """The vectors of token rows, in their order; raises `RequestError` for a row that the model cannot read."""
        if self._shapes is not None and (better := self._shapes.take()) is not None:
            self._become(better)
        assert self._runner is not None, "load() comes first"
        vectors = self._runner.embed(rows)
        if self._shapes is not None:
            self._shapes.count(rows)
        return vectors

    def fit(self, shapes: Shapes) -> None:
        """From now on tells it of the texts that come, and takes what it has ready between two batches."""
        self._shapes = shapes

    def close(self) -> None:
        """Ends what `fit` began."""
        if self._shapes is not None:
            self._shapes.stop()

    def _become(self, other: PackagedEmbeddingBackend) -> None:
        self._runner, self.recipe, self._buckets = other._runner, other.recipe, other._buckets
        self.placement, self.note = other.placement, other.note

    def _recipe(self) -> Recipe:
        model = fingerprint(self.config)
        if self._buckets:
            return Recipe(model, self._mode, self._buckets)
        preferred = self.cache.preferred(model)
        return preferred or Recipe(model, self._mode, buckets_for(self.config))

    def _convert(self, recipe: Recipe) -> Path:
        if recipe.calibration:
            raise BackendUnavailableError(
                "the package preferred for this model was calibrated and is gone: run `impetus-worker convert` again"
            )
        form = self.cache.form
        _log.info("converting the model for %s, once: %s", form.title, ", ".join(map(str, recipe.buckets)))

        def tell(step: str, share: float) -> None:
            _log.info("%3.0f %% %s", 100 * share, step)

        def write(folder: Path) -> None:
            path = self.cache.package(folder)
            form.build(self.config, recipe.buckets, path, mode=recipe.mode, calibration=(), progress=tell)

        with _or_unavailable("convert the model"):
            return self.cache.add(recipe, write)

    def _prepare(self, device: Device, entry: Path, buckets: Sequence[Bucket]) -> tuple[Path, dict[Bucket, Placement]]:
        """What the device compiled and where it means to run it: found out once a package and system."""
        package, folder = self.cache.package(entry), entry / f"{device.label}-{device.version}"

        def write(draft: Path) -> None:
            _log.info("compiling the package for this machine, once")
            with _or_unavailable("compile the package"):
                compiled = device.compile(package, draft)
            found = {}
            for bucket in buckets:
                with _or_unavailable(f"read the compute plan of {bucket}"):
                    placement = device.placement(package, compiled, bucket.function)
                if placement is not None:
                    found[str(bucket)] = asdict(placement)
            # Relative, for the folder is about to be renamed.
            told = {"compiled": os.path.relpath(compiled, draft), "placement": found}
            (draft / _PREPARED).write_text(json.dumps(told, indent=2))

        def read() -> tuple[Path, dict[Bucket, Placement]]:
            told = json.loads((folder / _PREPARED).read_text())
            found = {bucket: Placement(**told["placement"][str(bucket)]) for bucket in buckets if told["placement"]}
            return (folder / told["compiled"]).resolve(strict=True), found

        if folder.is_dir():
            try:
                return read()
            except (OSError, ValueError, TypeError, KeyError) as error:
                _log.warning("what was compiled in %s is damaged, and is made again: %s", folder, error)
                shutil.rmtree(folder)
        make_whole(folder, write)
        return read()

    def _check_placement(self, too_large: str | None) -> None:
        low = {bucket: each for bucket, each in self.placement.items() if not _earned(each)}
        if low:
            shares = ", ".join(
                f"{bucket}: {each.neural_engine:.0%} (CPU {each.cpu:.0%}, GPU {each.gpu:.0%})"
                for bucket, each in low.items()
            )
            raise BackendUnavailableError(
                f"{self.cache.form.title} places too little of the cost on the Neural Engine, and "
                f"{LEAST_ON_THE_NEURAL_ENGINE:.0%} is needed: {shares}" + (f"; {too_large}" if too_large else "")
            )


def buckets_for(
    config: EmbeddingConfig, count: int = DEFAULT_COUNT, *, call_tokens: float = GUESSED_CALL_TOKENS
) -> tuple[Bucket, ...]:
    """Those that suit a model: `count` of them for texts like docstrings, and some for longer ones."""
    return suiting(config.text.max_tokens, count=count, packed=packable(config), call_tokens=call_tokens)


def _calls(took: Mapping[Bucket, float], in_flight: Mapping[Bucket, int]) -> str:
    return ", ".join(
        f"{bucket} {1e3 * seconds:.1f} ms" + (" of two" if in_flight[bucket] > 1 else "")
        for bucket, seconds in took.items()
    )


def _earned(placement: Placement) -> bool:
    return placement.neural_engine >= LEAST_ON_THE_NEURAL_ENGINE


def needed_bytes(config: EmbeddingConfig, buckets: Sequence[Bucket]) -> int:
    """About how much memory the backend takes: float16 weights, once mapped and once more for every bucket, as each
    loaded function has been seen to keep its own (apple/coremltools#2351), and the widest tensors of each."""
    encoder = config.encoder
    hidden, wide = encoder.hidden_size, encoder.intermediate_size
    gated = encoder.turns or encoder.gated
    weights = (encoder.vocab_size + (0 if gated else encoder.position_rows)) * hidden + encoder.layer_weights
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
