"""Converting on purpose: a package measured against the reference, and refused where it loses too much.

What passes is what backends serve this model with from then on. Backends convert by themselves too, but only to plain
float16, which the golden check covers.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from impetus_backends.embedding.devices.packages.accuracy import NEIGHBOURS, Agreement, compare
from impetus_backends.embedding.devices.packages.buckets import Padding, padding
from impetus_backends.embedding.devices.packages.cache import PackageCache, Recipe, make_whole
from impetus_backends.embedding.devices.packages.form import size_of
from impetus_backends.embedding.devices.packages.runner import Runner
from impetus_backends.embedding.folder.weights import fingerprint
from impetus_backends.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from impetus_backends.embedding.devices.backend import EmbeddingBackend
    from impetus_backends.embedding.devices.packages.buckets import Bucket
    from impetus_backends.embedding.devices.packages.device import Device
    from impetus_backends.embedding.folder.config import EmbeddingConfig

    Progress = Callable[[str, float], None]

DEFAULT_LIMIT = 0.01
REPORT = "report.json"
CALIBRATED = "w8a8"
"""The mode whose activations have ranges."""
_ROWS_A_STEP = 32


class AccuracyError(BackendError):
    """A package lost more than the limit allows. Carries the report."""

    def __init__(self, report: Report) -> None:
        super().__init__(
            f"{report.mode} loses {report.loss:.2%} and {report.limit:.2%} is allowed: nothing was kept. "
            "Choose another form, allow more with --limit, or take it as it is with --accept-loss"
        )
        self.report = report


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two packages compared."""

    mode: str
    size_bytes: int
    agreement: Agreement
    """With the reference in float32."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was converted and how it did: A is the plain float16 package, B the one asked for (A itself for `none`)."""

    model: str
    fingerprint: str
    mode: str
    buckets: tuple[Bucket, ...]
    padding: Padding
    """Of the texts measured with."""
    device: str
    """What ran the packages to measure them."""
    a: Side
    b: Side
    limit: float

    @property
    def loss(self) -> float:
        return self.b.agreement.loss

    @property
    def passed(self) -> bool:
        return self.loss <= self.limit

    def to_json(self) -> str:
        content = {**asdict(self), "loss": self.loss, "passed": self.passed, "buckets": list(map(str, self.buckets))}
        return json.dumps(content, indent=2)


@dataclass(frozen=True, slots=True)
class Order:
    """What to convert, and what to ask of it."""

    model: str
    config: EmbeddingConfig
    mode: str
    buckets: tuple[Bucket, ...]
    rows: Sequence[np.ndarray]
    """Token rows to measure with."""
    calibration: Sequence[np.ndarray] = ()
    """Token rows whose activations set the ranges of `w8a8`."""
    limit: float = DEFAULT_LIMIT
    accept_loss: bool = False


def convert(
    order: Order,
    device: Device,
    reference: EmbeddingBackend,
    cache: PackageCache,
    progress: Progress = lambda step, share: None,
) -> tuple[Path, Report]:
    """The folder of the finished package, and its report, which lies in it too.

    The package is preferred from then on. Raises `AccuracyError` where it loses more than the limit and that is not
    accepted: it is then in the cache no longer, and no longer preferred.
    """
    if len(order.rows) <= NEIGHBOURS:
        raise BackendError(f"{len(order.rows)} texts are too few to measure with; at least {NEIGHBOURS + 1} are needed")
    plain = Recipe(fingerprint(order.config), "none", order.buckets)
    recipe = Recipe(plain.fingerprint, order.mode, order.buckets, _digest(order.calibration))
    reports: list[Report] = []

    def build(wanted: Recipe, folder: Path) -> None:
        cache.form.build(
            order.config,
            order.buckets,
            cache.package(folder),
            mode=wanted.mode,
            calibration=order.calibration if wanted.calibration else (),
            progress=progress,
        )

    def build_and_judge(folder: Path) -> None:
        build(recipe, folder)
        judge(folder)

    def judge(folder: Path) -> None:
        reports.append(report := measure(folder))
        if not report.passed and not order.accept_loss:
            raise AccuracyError(report)
        (folder / REPORT).write_text(report.to_json())

    def measure(folder: Path) -> Report:
        expected = _embed(reference.embed, order.rows, _part(progress, "the reference"))
        a = _side(
            order, device, "none", cache.package(cache.find(plain) or folder), expected, _part(progress, "A, float16")
        )
        b = a
        if order.mode != "none":
            b = _side(order, device, order.mode, cache.package(folder), expected, _part(progress, f"B, {order.mode}"))
        lengths = [len(row) for row in order.rows]
        waste = padding(lengths, order.buckets)
        return Report(order.model, plain.fingerprint, order.mode, order.buckets, waste, device.label, a, b, order.limit)

    if order.mode != "none" and cache.find(plain) is None:
        cache.add(plain, lambda folder: build(plain, folder))
    try:
        entry = cache.find(recipe)
        if entry is None:
            entry = cache.add(recipe, build_and_judge)
        else:
            # With other texts and another limit the answer may be another.
            judge(entry)
    except AccuracyError:
        cache.remove(recipe)
        if cache.preferred(recipe.fingerprint) == recipe:
            cache.prefer(plain)
        raise
    cache.prefer(recipe)
    return entry, reports[-1]


def add_measured(
    order: Order,
    device: Device,
    reference: EmbeddingBackend,
    cache: PackageCache,
    progress: Progress = lambda step, share: None,
) -> Agreement:
    """Converts a model as a backend would, and measures the package against the reference alone. It is not preferred.

    Raises `BackendError` where it loses more than the limit; nothing is kept of one that was made here.
    """
    recipe = Recipe(fingerprint(order.config), order.mode, order.buckets)
    found: list[Agreement] = []

    def judge(folder: Path) -> None:
        expected = _embed(reference.embed, order.rows, _part(progress, "the reference"))
        part = _part(progress, order.mode)
        found.append(agreement := _side(order, device, order.mode, cache.package(folder), expected, part).agreement)
        if agreement.loss > order.limit:
            raise BackendError(f"the package loses {agreement.loss:.2%}, and {order.limit:.2%} is allowed")

    def build_and_judge(folder: Path) -> None:
        path = cache.package(folder)
        cache.form.build(order.config, order.buckets, path, mode=order.mode, calibration=(), progress=progress)
        judge(folder)

    entry = cache.find(recipe)
    if entry is None:
        cache.add(recipe, build_and_judge)
    else:
        judge(entry)
    return found[0]


def convert_first(
    order: Order,
    modes: Sequence[str],
    device: Device,
    reference: EmbeddingBackend,
    cache: PackageCache,
    progress: Progress = lambda step, share: None,
) -> tuple[Path, Report, list[Report]]:
    """As `convert`, in the first of these modes that loses no more than the limit: the folder, its report, and those of
    the modes before it. Raises `AccuracyError` where the last loses more."""
    refused: list[Report] = []
    for mode in modes:
        each = replace(order, mode=mode, calibration=order.calibration if mode == CALIBRATED else ())
        try:
            return (*convert(each, device, reference, cache, progress), refused)
        except AccuracyError as error:
            if mode == modes[-1]:
                raise
            refused.append(error.report)
    raise BackendError("there is no form to convert to")


def export(package: Path, target: Path) -> None:
    """Copies a finished package, and its report beside it, to a folder that does not exist yet."""
    if target.exists():
        raise BackendError(f"{target} exists already")
    target.parent.mkdir(parents=True, exist_ok=True)

    def copy(folder: Path) -> None:
        shutil.copytree(package, folder / package.name)
        shutil.copy(package.parent / REPORT, folder)

    make_whole(target, copy)


def _side(
    order: Order, device: Device, mode: str, package: Path, expected: np.ndarray, progress: Callable[[float], None]
) -> Side:
    with tempfile.TemporaryDirectory() as compiled_in:
        compiled = device.compile(package, Path(compiled_in))
        functions = {bucket: device.load(compiled, bucket.function) for bucket in order.buckets}
        vectors = _embed(Runner(order.config, functions).embed, order.rows, progress)
    return Side(mode, size_of(package), compare(vectors, expected))


def _embed(
    embed: Callable[[Sequence[np.ndarray]], np.ndarray],
    rows: Sequence[np.ndarray],
    progress: Callable[[float], None],
) -> np.ndarray:
    """Some at a time, of like length, telling how far it is."""
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    parts = []
    for at in range(0, len(order), _ROWS_A_STEP):
        progress(at / len(order))
        parts.append(embed([rows[row] for row in order[at : at + _ROWS_A_STEP]]))
    vectors = np.concatenate(parts)
    ordered = np.empty_like(vectors)
    ordered[order] = vectors
    return ordered


def _part(progress: Progress, what: str) -> Callable[[float], None]:
    return lambda share: progress(f"measuring {what}", share)


def _digest(rows: Sequence[np.ndarray]) -> str:
    return sha256(b"".join(row.tobytes() + b";" for row in rows)).hexdigest()[:16] if rows else ""
