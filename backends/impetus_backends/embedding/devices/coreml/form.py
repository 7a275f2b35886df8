"""Core ML packages as a form of package."""

from __future__ import annotations

from impetus_backends.embedding.devices.coreml import calibration, limits, ops, package, quantize
from impetus_backends.embedding.devices.coreml.library import coremltools
from impetus_backends.embedding.devices.packages.form import Form

COREML = Form(
    name="coreml",
    title="Core ML",
    file="model.mlpackage",
    modes=quantize.MODES,
    needs=f"macOS {package.FIRST_MACOS} or iOS {package.FIRST_IOS}",
    version=lambda: str(coremltools().__version__),
    writers=(calibration, ops, package, quantize),
    build=package.build,
    too_large=limits.too_large,
)
