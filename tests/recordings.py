"""What other libraries made of our texts, as it was recorded (`scripts/recording/`)."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from tests.paths import DATA

if TYPE_CHECKING:
    from pathlib import Path


def recorded_texts() -> list[str]:
    """Those of which everything was recorded, in that order."""
    texts: list[str] = json.loads((DATA / "texts.json").read_text(encoding="ascii"))
    return texts


@cache
def recorded(*names: str) -> dict[str, np.ndarray]:
    """The arrays of these files of tests/data, by their names; such as `sparse` for sparse.npz."""
    return {key: array for name in names for key, array in _arrays(DATA / f"{name}.npz").items()}


def _arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)
