"""What decoding costs by rows, as measured: which count is to be had, and how near it comes to the memory's roof.

A step reads the weights once, and each row's keys and values: what a device could do at most is its memory's bandwidth.
That is the chip's published one where it is known, and elsewhere what copying an array here came to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..cache import cache_folder, write_whole
from ..machine.hardware import identify
from ..verified.roofs import roofs_of

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_STEP_S = 0.1
"""Ten tokens a second for each row: faster than anybody reads."""
LONGEST_OF_ONE = 4
"""Where even one row is slow: a step may take so many times as long as that of one."""
_ABOUT = 0.95
"""Of the most tokens a second, what is as good."""
_COPIED_BYTES, _COPIES = 128 * 2**20, 4
_REMEMBERED = 32
"""Models whose curves are kept."""


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Of memory, in bytes a second, and whose word that is."""

    bytes_s: float
    source: str

    def __str__(self) -> str:
        return f"{self.bytes_s / 1e9:,.4g} GB/s, {self.source}"


@dataclass(frozen=True, slots=True)
class RowCurve:
    """`points`: rows, and the seconds of a step with them. `weights_bytes`, `row_bytes`: what a step reads, once and
    for each row; of a mixture of experts it reads less, and so comes less near to the roof than is said."""

    points: tuple[tuple[int, float], ...]
    weights_bytes: int = 0
    row_bytes: int = 0
    bandwidth: Bandwidth | None = None

    @property
    def chosen(self) -> int:
        """How many rows are to decode together."""
        allowed = max(LONGEST_STEP_S, LONGEST_OF_ONE * self.points[0][1])
        speeds = {rows: rows / step_s for rows, step_s in self.points if step_s <= allowed}
        return min(rows for rows, speed in speeds.items() if speed >= _ABOUT * max(speeds.values()))

    def share(self, rows: int) -> float | None:
        """How much of the bandwidth a step with so many rows takes, 0 to 1; None where that is not known."""
        if self.bandwidth is None:
            return None
        return (self.weights_bytes + rows * self.row_bytes) / dict(self.points)[rows] / self.bandwidth.bytes_s

    @property
    def words(self) -> str:
        """One sentence, with all that was measured."""
        curve = ", ".join(self._point(rows, step_s) for rows, step_s in self.points)
        step_ms = dict(self.points)[self.chosen] * 1e3
        roof = f", and the share of the memory's bandwidth, {self.bandwidth}" if self.bandwidth is not None else ""
        return (
            f"{self.chosen} generations decode together, in steps of {step_ms:,.1f} ms, by measurement at load "
            f"(tokens/s by rows{roof}: {curve})"
        )

    def _point(self, rows: int, step_s: float) -> str:
        share = self.share(rows)
        return f"{rows}: {rows / step_s:,.0f}" + (f" at {share:.0%}" if share is not None else "")


def bandwidth_here(device: str, clock: Callable[[], float]) -> Bandwidth:
    """This machine's: published for its chip where `device` is a GPU, and elsewhere as copying shows it now."""
    roofs = roofs_of(identify()) if device.startswith("gpu") else None
    if roofs is not None:
        return Bandwidth(roofs.gigabytes_s * 1e9, "published")
    import mlx.core as mx

    array = mx.zeros(_COPIED_BYTES // 4, dtype=mx.float32)
    mx.eval(array)
    took: list[float] = []
    for _ in range(_COPIES):
        began = clock()
        mx.eval(array + 1)
        took.append(clock() - began)
    return Bandwidth(2 * _COPIED_BYTES / max(min(took), 1e-9), "as copying an array here came to")


def remember(model: str, curve: RowCurve) -> None:
    """Keeps the curve's words for `doctor` and `verify`. A disk that takes none is no matter."""
    kept = [each for each in remembered() if each["model"] != model][1 - _REMEMBERED :]
    kept.append({"model": model, "words": curve.words, "at": datetime.now(UTC).isoformat(timespec="seconds")})
    try:
        write_whole(cache_folder() / "rows.json", json.dumps(kept))
    except OSError:
        return


def remembered() -> list[dict[str, Any]]:
    """`model`, `words` and `at` (ISO 8601, UTC) of those that were measured here last, the newest last."""
    try:
        read = json.loads((cache_folder() / "rows.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    wanted = {"model", "words", "at"}
    return [each for each in read if isinstance(each, dict) and wanted <= each.keys()] if isinstance(read, list) else []
