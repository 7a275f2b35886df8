"""A small model whose package has a poor shape, and what is asked of the process that converts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from impetus_backends.embedding.devices.packages.buckets import Bucket
from impetus_backends.embedding.folder.config import read_config
from impetus_backends.embedding.folder.weights import fingerprint

from ...worker.conftest import fleet  # noqa: F401 - a fixture
from ..conftest import small_model

if TYPE_CHECKING:
    from pathlib import Path


CONFIG = read_config(small_model("bge"))


POOR = (Bucket(32, 40),)
"""For whoever embeds one text at a time."""


def request_of(folder: Path, cache: Path) -> dict[str, Any]:
    return {
        "folder": str(folder), "model": "bge", "backend": "coreml-emulated", "fingerprint": fingerprint(CONFIG),
        "mode": "none", "cache": str(cache), "buckets": [[1, 40, 1]],
    }  # fmt: skip
