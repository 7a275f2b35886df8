"""How much the engines of many workers have made, by what the workers count for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from impetus_backends.simulated import SimulatedTextEncoder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def tokens_given(folder: Path) -> int:
    """Tokens that all engines were given so far, padding aside; each has two batches at most that it has not run.

    `folder`: the workers' `PROMETHEUS_MULTIPROC_DIR`.
    """
    from prometheus_client import multiprocess

    library: Any = multiprocess  # which is not typed
    counted = library.MultiProcessCollector.merge([str(file) for file in folder.glob("counter_*.db")])
    samples = (sample for each in counted if each.name == "impetus_worker_prompt_tokens" for sample in each.samples)
    return int(sum(sample.value for sample in samples))


def tokens_of(texts: Sequence[str]) -> int:
    """As many as a simulated engine is given of these texts."""
    known: dict[str, int] = {}
    encoder = SimulatedTextEncoder()
    for text in texts:
        if text not in known:
            known[text] = len(encoder.encode([text])[0].ids)
    return sum(known[text] for text in texts)
