"""Core AI assets as a form of package."""

from __future__ import annotations

from impetus_backends.embedding.devices.coreai import library, ops, package
from impetus_backends.embedding.devices.packages.form import Form

COREAI = Form(
    name="coreai",
    title="Core AI",
    file="model.aimodel",
    modes=("none", "fp32"),
    needs=f"macOS {package.FIRST_MACOS} or iOS {package.FIRST_IOS}",
    version=library.version,
    writers=(ops, package),
    build=package.build,
)
