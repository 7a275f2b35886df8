"""Measures the project's claims on one machine: a line for each, wherever it runs.

What is a Mac's is *not applicable* elsewhere, with the reason. Nothing here has been run on a Mac yet.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from impetus_backends.embedding.devices.packages.accuracy import NEIGHBOURS
from impetus_backends.embedding.devices.packages.buckets import Bucket
from impetus_backends.embedding.devices.packages.cache import PackageCache
from impetus_backends.embedding.devices.packages.convert import Order, convert
from impetus_backends.errors import BackendError
from impetus_backends.generation.models.prefill import PROMPT_TOKENS, Shape
from impetus_backends.machine.energy import Used
from impetus_backends.machine.policy import MEMORY_SHARE, NEURAL_ENGINE_GENERATION, memory_limit_bytes
from impetus_backends.verified.check import Check, Verdict
from impetus_backends.verified.claims import TEXT_TOKENS, failed, found, not_applicable
from impetus_backends.verified.roofs import Work, encoder_work, roofs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from impetus_backends.embedding.devices.backend import EmbeddingBackend
    from impetus_backends.embedding.devices.packages.device import Device
    from impetus_backends.embedding.devices.packages.form import Form
    from impetus_backends.embedding.folder.config import EmbeddingConfig
    from impetus_backends.machine.energy import Meter
    from impetus_backends.machine.hardware import Hardware

"""Of "a text": about a document's of a corpus of documentation."""
_ROUNDS = 9
_LOSS_TEXTS = 24
_ENERGY_S = 2.0
"""Counters of energy move in steps of up to some tenths of a second."""
_NO_MAC = "this is no Mac, and only a Mac's time counts"


def rows_of(sizes: list[int], vocabulary: int) -> list[np.ndarray]:
    """Token rows of these lengths, always the same."""
    random = np.random.default_rng(2)
    return [random.integers(0, vocabulary, size, dtype=np.int32) for size in sizes]


def median_seconds(run: Callable[[], object], clock: Callable[[], float], rounds: int = _ROUNDS) -> tuple[float, float]:
    """The median, and the shortest; one round goes before those that count."""
    took = []
    for _ in range(1 + rounds):
        started = clock()
        run()
        took.append(clock() - started)
    return statistics.median(took[1:]), min(took[1:])


def of_texts(
    hardware: Hardware,
    config: EmbeddingConfig,
    backends: Mapping[str, EmbeddingBackend],
    batch: Bucket | None,
    clock: Callable[[], float],
) -> Iterator[Check]:
    """A text on the Neural Engine and on the GPU, and a full batch of `batch`, the largest shape of the package."""
    if hardware.system != "Darwin":
        for key in ("text-neural-engine", "batch-neural-engine", "text-gpu"):
            yield not_applicable(key, _NO_MAC)
        return
    length = min(TEXT_TOKENS, config.text.max_tokens)
    yield _timed("text-neural-engine", hardware, config, backends.get("coreml"), (1, length), clock)
    shape = (batch.batch, batch.length) if batch else (1, length)
    yield _timed("batch-neural-engine", hardware, config, backends.get("coreml"), shape, clock)
    yield _timed("text-gpu", hardware, config, backends.get("mlx"), (1, length), clock)


def _timed(
    key: str,
    hardware: Hardware,
    config: EmbeddingConfig,
    backend: EmbeddingBackend | None,
    shape: tuple[int, int],
    clock: Callable[[], float],
) -> Check:
    if backend is None:
        if key == "text-gpu":
            return not_applicable(key, "MLX does not run here")
        return failed(key, "the package did not load: see above")
    texts, length = shape
    rows = rows_of([length] * texts, config.encoder.vocab_size)
    try:
        median, least = median_seconds(lambda: backend.embed(rows), clock)
    except (BackendError, RuntimeError) as error:
        return failed(key, f"{backend.name} could not run it: {error}")
    detail = f"{texts} x {length} tokens: {1e3 * median:.2f} ms, {1e3 * least:.2f} at best"
    work = encoder_work(config, texts, length)
    return found(key, 1e3 * median, detail, work=work, seconds=median, roofs=roofs_of(hardware))


def of_pytorch(hardware: Hardware, config: EmbeddingConfig, clock: Callable[[], float]) -> Check:
    """The same text through transformers' own model. Unverified: torch is not among what this project installs."""
    key = "text-pytorch"
    if hardware.system != "Darwin":
        return not_applicable(key, _NO_MAC)
    if find_spec("torch") is None:
        return not_applicable(key, "torch is not installed, which Impetus does without: pip install torch, to compare")
    from transformers import AutoModel

    torch: Any = import_module("torch")
    length = min(TEXT_TOKENS, config.text.max_tokens)
    ids = torch.tensor(np.stack(rows_of([length], config.encoder.vocab_size)), dtype=torch.long)
    try:
        model = AutoModel.from_pretrained(config.transformer, trust_remote_code=False).eval()
        with torch.inference_mode():
            median, least = median_seconds(lambda: model(input_ids=ids), clock)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        return not_applicable(key, f"transformers does not run this model: {error}")
    return found(key, 1e3 * median, f"1 x {length} tokens: {1e3 * median:.2f} ms, {1e3 * least:.2f} at best")


def of_losses(
    config: EmbeddingConfig, form: Form, device: Device | None, reference: EmbeddingBackend, *, on_mac: bool
) -> Iterator[Check]:
    """What smaller packages lose, over token rows that are always the same; kept in no cache."""
    where = "" if on_mac else ", emulated"
    modes = (("int8", "loss-int8"), ("w8a8", "loss-w8a8"))
    if device is None:
        yield from (not_applicable(key, "no package can be made here: see above") for _, key in modes)
        return
    longest = min(TEXT_TOKENS, config.text.max_tokens)
    sizes = np.linspace(longest, min(4, longest), _LOSS_TEXTS + NEIGHBOURS).astype(int).tolist()
    rows = rows_of(sizes, config.encoder.vocab_size)
    # Of one cache, so that the package that both are compared with is made once.
    with tempfile.TemporaryDirectory() as folder:
        cache = PackageCache(form, Path(folder))
        for mode, key in modes:
            calibration = rows if mode == "w8a8" else []
            order = Order("", config, mode, (Bucket(1, longest),), rows, calibration, limit=1.0, accept_loss=True)
            try:
                _, report = convert(order, device, reference, cache)
            except BackendError as error:
                yield failed(key, str(error))
                continue
            cosine = report.b.agreement.mean_cosine
            yield found(
                key, 100 * report.loss, f"{report.loss:.2%} over {len(rows)} texts, mean cosine {cosine:.5f}{where}"
            )


def of_prefill(standard_s: float, m5_s: float, detail: str, hardware: Hardware, tokens: int = PROMPT_TOKENS) -> Check:
    """How much faster the M5 loader reads a prompt."""
    weights = Shape().weights
    work = Work(2.0 * tokens * weights, weights)
    return found("prefill-m5", standard_s / m5_s, detail, work=work, seconds=m5_s, roofs=roofs_of(hardware))


def of_rule(hardware: Hardware, seconds: Mapping[str, float]) -> Check:
    """Whether the backend that the rule takes, by the chip's number alone, is the faster one."""
    key = "fallback"
    if hardware.system != "Darwin" or not hardware.apple_silicon:
        return not_applicable(key, "there is neither a Neural Engine nor an Apple GPU here")
    if hardware.generation is None:
        return not_applicable(key, f"{hardware.chip} has no number to go by")
    if "coreml" not in seconds or "mlx" not in seconds:
        missing = " and ".join(sorted({"coreml", "mlx"} - seconds.keys()))
        return not_applicable(key, f"there is nothing to compare: {missing} did not run")
    taken, other = ("coreml", "mlx") if hardware.generation >= NEURAL_ENGINE_GENERATION else ("mlx", "coreml")
    gain = seconds[other] / seconds[taken]
    detail = f"{hardware.chip}: the rule takes {taken}, which is {gain:.2f}x as fast as {other}"
    return found(key, gain, detail)


def of_memory(hardware: Hardware) -> Check:
    """What this process took at most, of the machine's memory."""
    key, limit = "memory", memory_limit_bytes(hardware)
    if limit is None:
        return not_applicable(key, "how much memory there is could not be found out")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    share = peak / hardware.memory_bytes
    detail = f"a model may need {limit / 2**30:.1f} GiB ({MEMORY_SHARE:.0%}); this process took {peak / 2**30:.1f}"
    return found(key, 100 * share, detail)


def of_decoding() -> Check:
    return not_applicable(
        "decoder-neural-engine", "Impetus makes no package of a decoder: what a step reads grows with each token"
    )


def of_energy(
    backend: EmbeddingBackend, rows: Sequence[np.ndarray], meter: Meter | None, clock: Callable[[], float]
) -> Check:
    """What the whole chip uses for these rows, again and again."""
    name = "energy"
    if meter is None:
        why = "nothing here measures it: zeus-apple-silicon or macmon on a Mac, RAPL that may be read on Linux"
        return Check(name, Verdict.NOT_APPLICABLE, why)
    batches = 0
    try:
        before, started = meter.joules(), clock()
        while clock() - started < _ENERGY_S:
            backend.embed(rows)
            batches += 1
        used = Used(meter.joules() - before, batches * len(rows), batches * sum(map(len, rows)))
    except OSError as error:
        return Check(name, Verdict.NOT_APPLICABLE, f"{meter.source} told no more: {error}")
    detail = (
        f"{used.per_1000_texts:.3g} J for 1,000 texts and {used.per_1000_tokens:.3g} J for 1,000 tokens, of the whole "
        f"chip by {meter.source}, through {backend.name}: {batches} batches of {len(rows)} texts"
    )
    return Check(name, Verdict.PASS, detail)
