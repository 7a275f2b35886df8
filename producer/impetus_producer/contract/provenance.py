"""Of a result: who made it, on what, and how it may be compared."""

from __future__ import annotations

from .conversation import Told


class Provenance(Told):
    """Where and by what a result was made."""

    worker: str
    backend: str
    """`coreml`, `mlx`, `cpu`, `numpy`, `openai` (another server, which it was forwarded to) or `simulated`."""
    device: str
    fingerprint: str
    """Names weights, pooling, precision and backend: vectors with equal fingerprints may be compared."""
    note: str | None = None
    """What a reader must know, such as that the model is a random one made for tests."""
