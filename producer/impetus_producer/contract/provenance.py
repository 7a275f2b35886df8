"""Of a result: who made it, on what, and how it may be compared."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from .conversation import Told

Measured: TypeAlias = Annotated[float | None, Field(ge=0, allow_inf_nan=False)]


class Provenance(Told):
    """Where and by what a result was made."""

    worker: str
    backend: str
    """`coreml`, `mlx`, `cpu`, `numpy`, `openai` (another server, which it was forwarded to) or `simulated`."""
    device: str
    fingerprint: str
    """Names weights, pooling, precision and backend: vectors with equal fingerprints may be compared."""
    joules_per_1000_texts: Measured = None
    """What the whole chip used while its batches ran, each text its part by its tokens; of a generation, its even part
    of each step that it was in, by its answers. None where nothing measures it."""
    joules_per_1000_tokens: Measured = None
    """By tokens that were read; of a generation, by those that were made."""
    note: str | None = None
    """What a reader must know, such as that the model is a random one made for tests."""
