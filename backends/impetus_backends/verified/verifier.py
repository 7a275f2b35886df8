"""What only the machine itself can tell: whether Core ML serves here, where, how exactly and how fast.

One line a question, each with a verdict. What runs on a Mac only is `not applicable` elsewhere and says why: nothing
measured off a Mac is passed off as a Mac's. Targets are those the project was given; no Mac has met them yet.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
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
from impetus_backends.machine.energy import open_meter
from impetus_backends.machine.measurements import measure, standard_batch
from impetus_backends.machine.policy import not_installed
from impetus_backends.verified import figures
from impetus_backends.verified.check import Check, Verdict, verdict
from impetus_backends.verified.claims import CLAIMS, not_applicable
from impetus_backends.verified.roofs import roofs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from impetus_backends.embedding.devices.backend import EmbeddingBackend
    from impetus_backends.embedding.devices.packages.buckets import Bucket
    from impetus_backends.embedding.devices.packages.device import Device
    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.generation.models.profiles import Profile
    from impetus_backends.machine.energy import Meter
    from impetus_backends.machine.hardware import Hardware

_LEAST_COSINE = 0.999
_LEAST_COSINE_SMALLER = 0.99
"""Of weights in fewer bits than float16."""
_MATMUL = (1024, 4096, 4096)
"""Tokens, inputs and outputs of a layer such as a prefill has many of."""


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
    meter: Callable[[], Meter | None] = open_meter
    prefill: Callable[[Profile], float] | None = None
    """The seconds in which a loader reads a prompt; none means that they are taken here, with MLX."""

    @property
    def on_mac(self) -> bool:
        return self.hardware.system == "Darwin"

    def checks(self) -> Iterator[Check]:
        """One after the other, as they are done, one for each claim among them. Raises `ModelError` where the model
        cannot be had."""
        yield self._machine()
        config = read_config(models.resolve(self.model, listed=True).folder)
        reference = make_backend("numpy", config)
        reference.load()
        backend = self._backend(config)
        yield from self._package(config, backend, reference)
        loaded: list[EmbeddingBackend] = [backend] if backend.timings else []
        rivals, missing = self._rivals(config)
        rows = standard_batch(config.encoder.vocab_size, config.text.max_tokens)
        seconds = dict(measure([*loaded, *rivals], rows, clock=self.clock)) if self.on_mac else {}
        yield self._comparison(seconds, len(rows), missing)
        yield self._matmul()
        by_name = {each.name: each for each in (*loaded, *rivals)}
        largest = max(backend.timings, key=lambda bucket: bucket.tokens, default=None)
        yield from figures.of_texts(self.hardware, config, by_name, largest, self.clock)
        yield figures.of_pytorch(self.hardware, config, self.clock)
        yield self._prefill()
        device = self._device() if backend.timings else None
        yield from figures.of_losses(config, COREML, device, reference, on_mac=self.on_mac)
        yield figures.of_rule(self.hardware, seconds)
        yield figures.of_memory(self.hardware)
        yield figures.of_energy((*loaded, *rivals, reference)[0], rows, self.meter(), self.clock)
        yield figures.of_decoding()

    def _device(self) -> Device:
        return (self.device or (CoreMLDevice if self.on_mac else EmulatedDevice))()

    def _backend(self, config: EmbeddingConfig) -> PackagedEmbeddingBackend:
        name = "coreml" if self.on_mac else "coreml-emulated"
        return PackagedEmbeddingBackend(config, self._device, self.cache, name=name)

    def _package(
        self, config: EmbeddingConfig, backend: PackagedEmbeddingBackend, reference: EmbeddingBackend
    ) -> Iterator[Check]:
        """The package is made and loaded, and each of its shapes looked at."""
        name = "convert, compile, load"
        if not self.on_mac and (missing := not_installed("coreml")):
            yield Check(name, Verdict.NOT_APPLICABLE, missing)
            return
        started = self.clock()
        try:
            backend.load()
        except BackendError as error:
            yield from self._placement(backend)
            yield Check(name, Verdict.FAIL, str(error))
            return
        took = f"{self.clock() - started:.1f} s, {backend.precision}, {len(backend.timings)} buckets"
        compiled = "" if self.on_mac else "; converted here, and run by numpy: only a Mac compiles"
        yield Check(name, Verdict.PASS, took + compiled)
        yield from self._placement(backend)
        vocabulary = config.encoder.vocab_size
        for bucket in backend.timings:
            yield self._accuracy(bucket, backend, reference, vocabulary)
        for bucket in backend.timings:
            yield self._latency(bucket, backend, vocabulary)

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
            yield Check(f"placement {bucket}", verdict(earned), detail)

    def _accuracy(
        self, bucket: Bucket, backend: PackagedEmbeddingBackend, reference: EmbeddingBackend, vocabulary: int
    ) -> Check:
        """A batch of this bucket's size, rows from full to nearly empty."""
        longest = bucket.length // bucket.texts
        sizes = np.linspace(longest, min(2, longest), bucket.most).astype(int)
        rows = figures.rows_of(sizes.tolist(), vocabulary)
        got = backend.embed(rows)
        expected = np.concatenate([reference.embed([row]) for row in rows])
        lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
        least = float(((got * expected).sum(axis=1) / np.maximum(lengths, 1e-12)).min())
        asked = _LEAST_COSINE if backend.precision == "fp16" else _LEAST_COSINE_SMALLER
        how = "" if self.on_mac else ", emulated"
        return Check(f"accuracy {bucket}", verdict(least >= asked), f"least cosine {least:.6f} (asked: {asked}){how}")

    def _latency(self, bucket: Bucket, backend: PackagedEmbeddingBackend, vocabulary: int) -> Check:
        name = f"latency {bucket}"
        if not self.on_mac:
            return Check(name, Verdict.NOT_APPLICABLE, "numpy in Core ML's stead tells nothing of a Neural Engine")
        rows = figures.rows_of([bucket.length // bucket.texts] * bucket.most, vocabulary)
        claim = CLAIMS["text-neural-engine" if bucket.most == 1 else "batch-neural-engine"]
        median, least = figures.median_seconds(lambda: backend.embed(rows), self.clock)
        detail = f"{1e3 * median:.2f} ms, {1e3 * least:.2f} at best (target: {claim.target:g} ms)"
        return Check(name, verdict(claim.met(1e3 * median)), detail)

    def _rivals(self, config: EmbeddingConfig) -> tuple[list[EmbeddingBackend], list[str]]:
        """What else a Mac can embed with, loaded, and what of it did not load."""
        loaded: list[EmbeddingBackend] = []
        missing = []
        for name in self.others if self.on_mac else ():
            try:
                rival = make_backend(name, config)
                rival.load()
            except BackendError as error:
                missing.append(f"{name} left out: {error}")
            else:
                loaded.append(rival)
        return loaded, missing

    def _comparison(self, seconds: dict[str, float], texts: int, missing: list[str]) -> Check:
        name = "Neural Engine against GPU and CPU"
        if not self.on_mac:
            return Check(name, Verdict.NOT_APPLICABLE, "there is neither a Neural Engine nor an Apple GPU here")
        told = [f"{each} {took * 1e3:.1f} ms" for each, took in seconds.items()]
        detail = "; ".join([f"a batch of {texts} texts: {', '.join(told)}", *missing])
        fastest = min(seconds, key=lambda each: seconds[each], default=None)
        return Check(name, verdict(fastest == "coreml"), detail)

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
        roof = roofs_of(self.hardware)
        share = f" ({flops / half / 1e12 / roof.gpu_tflops:.0%} of the chip's roof)" if roof and roof.gpu_tflops else ""
        detail = (
            f"{flops / half / 1e12:.1f} and {flops / full / 1e12:.1f} TFLOP/s, {full / half:.1f}x{share}; "
            f"neural accelerators in the GPU: {likely}"
        )
        return Check(name, Verdict.PASS, detail)

    def _prefill(self) -> Check:
        """The M5 loader against the standard one on this machine, over the same prompt."""
        key = "prefill-m5"
        if not (self.on_mac and self.hardware.apple_silicon):
            return not_applicable(key, "there is no Apple GPU here")
        if not self.hardware.neural_accelerators_likely:
            return not_applicable(key, "this GPU likely has no neural accelerators that MLX uses")
        seconds = self.prefill or partial(prefill_seconds, clock=self.clock)
        try:
            standard, m5 = seconds(STANDARD), seconds(M5)
        except (BackendError, ImportError, RuntimeError) as error:
            return not_applicable(key, f"MLX does not run: {error}")
        detail = (
            f"{PROMPT_TOKENS} tokens: standard ({STANDARD.quantization}, {STANDARD.prefill_tokens} a step) "
            f"{standard:.2f} s, m5 ({M5.quantization}, {M5.prefill_tokens} a step) {m5:.2f} s, {standard / m5:.1f}x "
            f"(target: {CLAIMS[key].target:g}x, which nobody has met yet); a model of random weights"
        )
        return figures.of_prefill(standard, m5, detail, self.hardware)


def _matmul_seconds(dtype: str, clock: Callable[[], float]) -> float:
    import mlx.core as mx

    tokens, inputs, outputs = _MATMUL
    a = mx.ones((tokens, inputs), dtype=getattr(mx, dtype))
    b = mx.ones((inputs, outputs), dtype=getattr(mx, dtype))
    return figures.median_seconds(lambda: mx.eval(a @ b), clock)[0]
