"""coreai-core, imported once: Apple's authoring library for Core AI, with Apple's runtime in it.

A beta whose format has changed between releases: this module is all that names its parts, and the cache makes every
asset again when its version changes. API: its own docstrings, for Apple publishes none elsewhere yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Any

from impetus_backends.errors import BackendUnavailableError

PACKAGE = "coreai-core"
TESTED = "1.0.0b3"
"""The one version whose assets were run; pyproject.toml pins it."""


@dataclass(frozen=True, slots=True)
class Library:
    """What of the library is used."""

    version: str
    operations: Any
    """Its module of operations on values."""
    tanh: Any
    """The one operation that is elsewhere."""
    constant: Any
    graph: Any
    module: Any
    program: Any
    tensor: Any
    """The type of a tensor: shape, numpy type and name."""
    value: Any
    asset: Any
    array: Any
    metadata: Any


def version() -> str:
    """Raises `BackendUnavailableError` where the library is not installed."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise BackendUnavailableError(
            f"Core AI assets need {PACKAGE} (macOS, or Linux on x86_64 with glibc 2.34): pip install "
            "'impetus-batch[coreai]'"
        ) from None


def coreai() -> Library:
    """Raises `BackendUnavailableError` where it is not installed, or is another version than was tested."""
    found = version()
    if found != TESTED:
        raise BackendUnavailableError(
            f"{PACKAGE} {found} is installed, and assets were tested with {TESTED} alone, for its format changes "
            f"between betas: pip install '{PACKAGE}=={TESTED}'"
        )
    try:
        from coreai.authoring import AIModelAsset, AIProgram, Module, TensorType, Value, reduction_ops
        from coreai.authoring.constant import constant
        from coreai.authoring.elementwise_unary_ops import tanh
        from coreai.authoring.graph import graph
        from coreai.runtime import AIModelAssetMetadata, NDArray
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(f"{PACKAGE} {found} cannot be imported here: {error}") from error
    return Library(
        found, reduction_ops, tanh, constant, graph, Module, AIProgram, TensorType, Value, AIModelAsset, NDArray,
        AIModelAssetMetadata,
    )  # fmt: skip
