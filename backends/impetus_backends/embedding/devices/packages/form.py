"""What a kind of package is: who writes it, and what the functions in it are given and return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from impetus_backends.embedding.devices.operations import INPUTS
from impetus_backends.embedding.encoder import pack, pad
from impetus_backends.errors import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import ModuleType

    import numpy as np

    from impetus_backends.embedding.devices.operations import Inputs
    from impetus_backends.embedding.devices.packages.buckets import Bucket, Call
    from impetus_backends.embedding.folder.config import EmbeddingConfig

    Progress = Callable[[str, float], None]

OUTPUT = "vectors"
"""What a function returns: float32 (batch * texts, dimensions)."""
_LONGEST, _LONGEST_PAIRS = 8192, 2048


class Build(Protocol):
    """Writes the package to `path`, which must not exist.

    `mode` is how weights are stored; `calibration` are token rows to calibrate activations on, for modes that do;
    `progress` is told each step and the share then done. Raises `BackendUnavailableError` where the library is missing
    or refuses the model, `ModelError` for bad files.
    """

    def __call__(
        self,
        config: EmbeddingConfig,
        buckets: Sequence[Bucket],
        path: Path,
        *,
        mode: str,
        calibration: Sequence[np.ndarray],
        progress: Progress,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Form:
    """A kind of package."""

    name: str
    """Of its folder in the cache."""
    title: str
    """As people know it."""
    file: str
    """What a package is called in its folder."""
    modes: tuple[str, ...]
    """How its weights may be stored; `none` is float16, as it stands."""
    needs: str
    """The earliest systems that run a package, which its metadata names too."""
    version: Callable[[], str]
    """Of the library that writes it; raises `BackendUnavailableError` where it is not installed."""
    writers: tuple[ModuleType, ...]
    """Our modules that decide what is in it."""
    build: Build
    too_large: Callable[[int, str], str | None] = lambda size_bytes, macos: None
    """What is to be said of a package of so many bytes under a macOS, such as `26.2`."""


def size_of(package: Path) -> int:
    """In bytes."""
    return sum(file.stat().st_size for file in package.rglob("*") if file.is_file())


def input_shapes(config: EmbeddingConfig, bucket: Bucket) -> dict[str, tuple[int, ...]]:
    """Of the function of a bucket, by name."""
    flat = (bucket.batch, bucket.length)
    shares = (bucket.batch, len(config.pooling.modes), bucket.texts, bucket.length)
    return dict.fromkeys(INPUTS[:3], flat) | {INPUTS[3]: shares}


def lay(config: EmbeddingConfig, call: Call, rows: Sequence[np.ndarray]) -> Inputs[np.ndarray]:
    """What a call is given of these token rows; raises `RequestError` for one that the model cannot read."""
    bucket = call.bucket
    if not bucket.packed:
        return pad(config, [rows[row] for row in call.rows], batch=bucket.batch, length=bucket.length)
    groups = [[rows[row] for row in group] for group in call.groups]
    return pack(config, groups, texts=bucket.texts, length=bucket.length, batch=bucket.batch)


def check_lengths(config: EmbeddingConfig, buckets: Sequence[Bucket], title: str) -> None:
    """Raises `BackendUnavailableError` for lengths of which a static shape would take gigabytes: where a layer's scores
    depend on how far apart two tokens are, a package holds a number for every pair."""
    pairs = config.encoder.knows_distances or any(each.causal or each.window for each in config.encoder.attentions)
    most = _LONGEST_PAIRS if pairs else _LONGEST
    longest = max(bucket.length for bucket in buckets)
    if longest > most:
        raise BackendUnavailableError(
            f"the model reads {longest} tokens and a {title} package of it ends at {most}: use mlx or cpu, or lower "
            "max_seq_length in its sentence_bert_config.json"
        )
