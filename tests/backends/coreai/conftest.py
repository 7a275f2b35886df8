"""Apple's own runtime, wherever its library can be installed."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from impetus_backends.embedding.devices.coreai.device import CoreAIDevice
from impetus_backends.embedding.devices.coreai.form import COREAI
from impetus_backends.embedding.devices.packages.backend import PackagedEmbeddingBackend
from impetus_backends.embedding.devices.packages.cache import PackageCache

if TYPE_CHECKING:
    from impetus_backends.embedding.devices.packages.buckets import Bucket
    from impetus_backends.embedding.folder.config import EmbeddingConfig

FOLDER = Path(__file__).parent


def _installable() -> bool:
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    libc, version = platform.libc_ver()
    enough = libc == "glibc" and tuple(map(int, version.split("."))) >= (2, 34)
    return platform.machine() == "x86_64" and enough


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not _installable():
        reason = "coreai-core has no wheel for this machine: it needs an Apple chip, or Linux on x86_64 with glibc 2.34"
        for item in items:
            if item.path.is_relative_to(FOLDER):
                item.add_marker(pytest.mark.skip(reason=reason))


def backend_of(config: EmbeddingConfig, folder: Path, *buckets: Bucket, mode: str = "fp32") -> PackagedEmbeddingBackend:
    cache = PackageCache(COREAI, folder)
    return PackagedEmbeddingBackend(config, CoreAIDevice, cache, name="coreai", buckets=buckets, mode=mode)
