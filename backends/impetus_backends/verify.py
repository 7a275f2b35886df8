"""What only the machine itself can tell: whether Core ML serves here, where, how exactly and how fast.

One line a question, each with a verdict. What runs on a Mac only is `not applicable` elsewhere and says why: nothing
measured off a Mac is passed off as a Mac's. Targets are those the project was given; no Mac has met them yet.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from impetus_backends import models
from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.devices.coreml.emulated import EmulatedDevice
from impetus_backends.embedding.devices.coreml.form import COREML
from impetus_backends.embedding.devices.coreml.macos import CoreMLDevice
from impetus_backends.embedding.devices.packages.backend import LEAST_ON_THE_NEURAL_ENGINE, PackagedEmbeddingBackend
from impetus_backends.embedding.devices.packages.cache import PackageCache
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.errors import BackendError
from impetus_backends.generation.models.prefill import PROMPT_TOKENS, prefill_seconds
from impetus_backends.generation.models.profiles import M5, STANDARD
from impetus_backends.measurements import measure, standard_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from impetus_backends.embedding.devices.backends import EmbeddingBackend
    from impetus_backends.embedding.devices.packages.buckets import Bucket
    from impetus_backends.embedding.devices.packages.device import Device
    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.generation.models.profiles import Profile
    from impetus_backends.hardware import Hardware

TEXT_MS, BATCH_MS = 5.0, 10.0
"""The targets: one text on the Neural Engine, and a batch."""
PREFILL_GAIN = 4.0
"""The target: by how much the M5 loader reads a prompt faster than the standard one."""
_LEAST_COSINE = 0.999
_LEAST_COSINE_SMALLER = 0.99
"""Of weights in fewer bits than float16."""
_ROUNDS = 9
_MATMUL = (1024, 4096, 4096)
"""Tokens, inputs and outputs of a layer such as a prefill has many of."""


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True, slots=True)
class Verifier:
    """Checks one machine. `device` and `others` are replaced in tests."""

    hardware: Hardware
    model: str = models.DEFAULT_EMBEDDING_MODEL
    device: Callable[[], Device] | None = None
    """What runs packages; none means Core ML on a Mac, and numpy in its stead elsewhere."""
    others: tuple[str, ...] = ("mlx", "cpu")
    """The backends that the Neural Engine is compared with, on a Mac."""
    cache: PackageCache = field(default_factory=lambda: PackageCache(COREML))
    clock: Callable[[], float] = time.perf_counter
    prefill: Callable[[Profile], float] | None = None
    """The seconds in which a loader reads a prompt; none means that they are taken here, with MLX."""

    @property
    def on_mac(self) -> bool:
        return self.hardware.system == "Darwin"

    def checks(self) -> Iterator[Check]:
        """One after the other, as they are done. Raises `ModelError` where the model cannot be had."""
        yield self._machine()
        files = models.resolve(self.model)
        config = read_config(files.folder)
        name = "coreml" if self.on_mac else "coreml-emulated"
        make = self.device or (CoreMLDevice if self.on_mac else EmulatedDevice)
        backend = PackagedEmbeddingBackend(config, make, self.cache, name=name)
        started = self.clock()
        try:
            backend.load()
        except BackendError as error:
            yield from self._placement(backend)
            yield Check("convert, compile, load", Verdict.FAIL, str(error))
            return
        took = f"{self.clock() - started:.1f} s, {backend.precision}, {len(backend.timings)} buckets"
        compiled = "" if self.on_mac else "; converted here, and run by numpy: only a Mac compiles"
        yield Check("convert, compile, load", Verdict.PASS, took + compiled)
        yield from self._placement(backend)
        reference, vocabulary = make_backend("numpy", config), config.encoder.vocab_size
        reference.load()
        for bucket in backend.timings:
            yield self._accuracy(bucket, backend, reference, vocabulary)
        for bucket in backend.timings:
            yield self._latency(bucket, backend, vocabulary)
        yield self._comparison(backend, config)
        yield self._matmul()
        yield self._prefill()

    def _machine(self) -> Check:
        machine = self.hardware
        detail = f"{machine.chip}, {machine.memory_bytes / 2**30:.0f} GiB, {machine.system} {machine.macos}".rstrip()
        if machine.problems:
            return Check("machine", Verdict.FAIL, "; ".join((detail, *machine.problems)))
        return Check("machine", Verdict.PASS, detail)

    def _placement(self, backend: PackagedEmbeddingBackend) -> Iterator[Check]:
        if not backend.placement:
            yield Check("placement", Verdict.NOT_APPLICABLE, "only Core ML on a Mac has a compute plan to ask")
        for bucket, share in backend.placement.items():
            earned = share.neural_engine >= LEAST_ON_THE_NEURAL_ENGINE
            detail = f"Neural Engine {share.neural_engine:.0%}, GPU {share.gpu:.0%}, CPU {share.cpu:.0%} of the cost"
            yield Check(f"placement {bucket}", _verdict(earned), detail)

    def _accuracy(
        self, bucket: Bucket, backend: PackagedEmbeddingBackend, reference: EmbeddingBackend, vocabulary: int
    ) -> Check:
        """A batch of this bucket's size, rows from full to nearly empty."""
        longest = bucket.length // bucket.texts
        sizes = np.linspace(longest, min(2, longest), bucket.most).astype(int)
        rows = _rows(sizes.tolist(), vocabulary)
        got = backend.embed(rows)
        expected = np.concatenate([reference.embed([row]) for row in rows])
        lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
        least = float(((got * expected).sum(axis=1) / np.maximum(lengths, 1e-12)).min())
        asked = _LEAST_COSINE if backend.precision == "fp16" else _LEAST_COSINE_SMALLER
        how = "" if self.on_mac else ", emulated"
        return Check(f"accuracy {bucket}", _verdict(least >= asked), f"least cosine {least:.6f} (asked: {asked}){how}")

    def _latency(self, bucket: Bucket, backend: PackagedEmbeddingBackend, vocabulary: int) -> Check:
        name = f"latency {bucket}"
        if not self.on_mac:
            return Check(name, Verdict.NOT_APPLICABLE, "numpy in Core ML's stead tells nothing of a Neural Engine")
        rows = _rows([bucket.length // bucket.texts] * bucket.most, vocabulary)
        took = []
        for _ in range(_ROUNDS):
            started = self.clock()
            backend.embed(rows)
            took.append(1e3 * (self.clock() - started))
        target_ms = TEXT_MS if bucket.most == 1 else BATCH_MS
        median = statistics.median(took)
        detail = f"{median:.2f} ms, {min(took):.2f} to {max(took):.2f} (target: {target_ms:g} ms)"
        return Check(name, _verdict(median <= target_ms), detail)

    def _comparison(self, backend: PackagedEmbeddingBackend, config: EmbeddingConfig) -> Check:
        name = "Neural Engine against GPU and CPU"
        if not self.on_mac:
            return Check(name, Verdict.NOT_APPLICABLE, "there is neither a Neural Engine nor an Apple GPU here")
        loaded: list[EmbeddingBackend] = [backend]
        missing = []
        for other in self.others:
            try:
                rival = make_backend(other, config)
                rival.load()
            except BackendError as error:
                missing.append(f"{other} left out: {error}")
            else:
                loaded.append(rival)
        rows = standard_batch(config.encoder.vocab_size, config.text.max_tokens)
        seconds = dict(measure(loaded, rows, clock=self.clock))
        figures = [f"{each} {took * 1e3:.1f} ms" for each, took in seconds.items()]
        fastest = min(seconds, key=lambda each: seconds[each])
        detail = "; ".join([f"a batch of {len(rows)} texts: {', '.join(figures)}", *missing])
        return Check(name, _verdict(fastest == backend.name), detail)

    def _matmul(self) -> Check:
        """float16 against float32: what neural accelerators in the GPU, if MLX uses them, would make far apart."""
        name = "GPU matrix product, float16 against float32"
        if not (self.on_mac and self.hardware.apple_silicon):
            return Check(name, Verdict.NOT_APPLICABLE, "there is no Apple GPU here")
        try:
            half, full = _matmul_seconds("float16", self.clock), _matmul_seconds("float32", self.clock)
        except (ImportError, RuntimeError) as error:
            return Check(name, Verdict.NOT_APPLICABLE, f"MLX does not run: {error}")
        flops = 2 * np.prod(_MATMUL, dtype=np.float64)
        likely = "likely" if self.hardware.neural_accelerators_likely else "not likely"
        detail = (
            f"{flops / half / 1e12:.1f} and {flops / full / 1e12:.1f} TFLOP/s, {full / half:.1f}x; "
            f"neural accelerators in the GPU: {likely}"
        )
        return Check(name, Verdict.PASS, detail)

    def _prefill(self) -> Check:
        """The M5 loader against the standard one on this machine, over the same prompt."""
        name = "prefill with the M5 loader"
        if not (self.on_mac and self.hardware.apple_silicon):
            return Check(name, Verdict.NOT_APPLICABLE, "there is no Apple GPU here")
        if not self.hardware.neural_accelerators_likely:
            return Check(name, Verdict.NOT_APPLICABLE, "this GPU likely has no neural accelerators that MLX uses")
        seconds = self.prefill or partial(prefill_seconds, clock=self.clock)
        try:
            standard, m5 = seconds(STANDARD), seconds(M5)
        except (BackendError, ImportError, RuntimeError) as error:
            return Check(name, Verdict.NOT_APPLICABLE, f"MLX does not run: {error}")
        detail = (
            f"{PROMPT_TOKENS} tokens: standard ({STANDARD.quantization}, {STANDARD.prefill_tokens} a step) "
            f"{standard:.2f} s, m5 ({M5.quantization}, {M5.prefill_tokens} a step) {m5:.2f} s, {standard / m5:.1f}x "
            f"(target: {PREFILL_GAIN:g}x, which nobody has met yet); a model of random weights"
        )
        return Check(name, _verdict(standard / m5 >= PREFILL_GAIN), detail)


def _matmul_seconds(dtype: str, clock: Callable[[], float]) -> float:
    import mlx.core as mx

    tokens, inputs, outputs = _MATMUL
    a = mx.ones((tokens, inputs), dtype=getattr(mx, dtype))
    b = mx.ones((inputs, outputs), dtype=getattr(mx, dtype))
    took = []
    for _ in range(_ROUNDS):
        started = clock()
        mx.eval(a @ b)
        took.append(clock() - started)
    return statistics.median(took[1:])


def _rows(sizes: list[int], vocabulary: int) -> list[np.ndarray]:
    """Token rows of these lengths, always the same."""
    random = np.random.default_rng(2)
    return [random.integers(0, vocabulary, size, dtype=np.int32) for size in sizes]


def _verdict(good: bool) -> Verdict:
    return Verdict.PASS if good else Verdict.FAIL
