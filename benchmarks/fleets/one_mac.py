"""One Mac whose Neural Engine and GPU work at once: by length, beside each alone and beside two workers.

The curves are inventions, and no figure here is one of a Mac; the cuts are those that `BothBackend` makes. Batches are
the worker's: texts in the order in which they came, up to a budget of tokens.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
from scripts.corpus import docstrings

from impetus_backends.embedding.budget import USUAL
from impetus_backends.embedding.devices.backends import BOTH
from impetus_backends.embedding.devices.both import Curve, split
from impetus_backends.simulated import SimulatedTextEncoder
from impetus_worker.batches.planning.packing import fill

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..means.report import Report

PAIRS = {
    "like": (Curve(0.002, 60e-6, 0.2e-6), Curve(0.012, 70e-6)),
    "large gpu": (Curve(0.002, 80e-6, 0.2e-6), Curve(0.012, 18e-6)),
    "small gpu": (Curve(0.001, 40e-6, 0.1e-6), Curve(0.015, 160e-6)),
}
"""A Neural Engine, quick to call and slower the longer a text is; and a GPU."""
_MOST_TEXTS = 512


def measure(seed: int = 1) -> list[dict[str, Any]]:
    texts = [docstring.text for docstring in docstrings()]
    random.Random(seed).shuffle(texts)
    lengths = [len(text.ids) for text in SimulatedTextEncoder().encode(texts)]
    batches = [
        np.array(batch) for batch in fill(lengths, lambda length: length, max_tokens=USUAL[BOTH], max_rows=_MOST_TEXTS)
    ]
    return [_row(name, curves, batches, len(lengths)) for name, curves in PAIRS.items()]


def _row(name: str, curves: tuple[Curve, Curve], batches: Sequence[np.ndarray], texts: int) -> dict[str, Any]:
    ane_s, gpu_s = (sum(curve.seconds(batch) for batch in batches) for curve in curves)
    # Two workers share by speed, whatever the lengths: at best both end together.
    two_s = 1 / (1 / ane_s + 1 / gpu_s)
    cuts = [split(batch, curves) for batch in batches]
    both_s = sum(cut.seconds for cut in cuts)
    short, long = (
        np.concatenate([batch[cut.rows[at]] for batch, cut in zip(batches, cuts, strict=True)]) for at in (0, 1)
    )
    return {
        "Mac": name,
        "texts": texts,
        "ANE alone (s)": ane_s,
        "GPU alone (s)": gpu_s,
        "two workers (s)": two_s,
        "by length (s)": both_s,
        "of two workers": round(two_s / both_s, 2),
        "tokens a text, ANE": float(short.mean()) if len(short) else None,
        "GPU": float(long.mean()) if len(long) else None,
    }


def tell(report: Report, rows: Sequence[dict[str, Any]]) -> None:
    told = "; ".join(
        f"{name}: "
        + ", ".join(
            f"{c.call_s * 1e3:g} ms + {c.token_s * 1e6:g} us a token + {c.square_s * 1e6:g} us a squared length"
            for c in pair
        )
        for name, pair in PAIRS.items()
    )
    report.table(
        "one mac",
        "Seconds that the docstrings take one simulated Mac: its Neural Engine, its GPU, and both",
        rows,
        [f"curves, invented: {told}", "two workers: at best, as two that share by speed and not by length"],
    )
