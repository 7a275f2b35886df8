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
    """Of embeddings and rerankings: what the whole chip used while their batches ran, each text its part by its tokens.
    None where nothing measures it."""
    joules_per_1000_tokens: Measured = None
    note: str | None = None
    """What a reader must know, such as that the model is a random one made for tests."""
