"""How far a long run is: a bar on a terminal, lines elsewhere, JSON for programs, or nothing."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ProgressKind = Literal["auto", "bar", "lines", "json", "none"]
_REDRAW_EVERY_S = 0.1
_LINE_EVERY_S = 5.0
_RATE_OVER_S = 30.0


class Pace:
    """Counts what is done, and how fast it goes lately.

    The clock runs from the first result that was computed: a run that goes on with another's work passes over what is
    done in seconds, which says nothing of the rest. `total` may be a guess.
    """

    def __init__(self, total: int | None, clock: Callable[[], float] = time.monotonic, noun: str = "documents") -> None:
        self.total = total
        self.noun = noun
        self.short = "docs" if noun == "documents" else noun
        self.done = 0
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, computing: bool) -> None:
        """To be called now and then."""
        if not computing:
            return
        now = self._clock()
        self._seen.append((now, self.done))
        while now - self._seen[0][0] > _RATE_OVER_S and len(self._seen) > 2:
            self._seen.popleft()

    @property
    def rate(self) -> float | None:
        """So many a second; None as long as nobody knows."""
        if len(self._seen) < 2:
            return None
        (since, before), (now, done) = self._seen[0], self._seen[-1]
        return (done - before) / (now - since) if now > since and done > before else None

    @property
    def left_s(self) -> float | None:
        if self.total is None or (rate := self.rate) is None:
            return None
        return max(0, self.total - self.done) / rate

    def as_dict(self) -> dict[str, Any]:
        rate, left_s = self.rate, self.left_s
        return {
            self.noun: self.done,
            "total": self.total,
            f"{self.short}_per_s": None if rate is None else round(rate, 1),
            "left_s": None if left_s is None else round(left_s),
        }

    def __str__(self) -> str:
        rate, left_s = self.rate, self.left_s
        of = "" if self.total is None else f" of {self.total:,}"
        speed = "" if rate is None else f", {rate:,.1f} {self.short}/s"
        return f"{self.done:,}{of} {self.noun}{speed}" + ("" if left_s is None else f", about {spoken(left_s)} left")


def spoken(seconds: float) -> str:
    """A time to wait, as roughly as one knows it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


@contextmanager
def progress(
    kind: ProgressKind,
    count: Callable[[], int | None],
    is_computing: Callable[[], bool],
    label: str,
    noun: str = "documents",
    tell: Callable[[Pace], None] = lambda pace: None,
) -> Iterator[tuple[Callable[..., None], Callable[[], None]]]:
    """Yields what to call for each document, or for so many, and what to call now and then while none comes. `tell` is
    called about as often as something is shown."""
    if kind == "auto":
        kind = "bar" if sys.stderr.isatty() else "lines"
    pace = Pace(count(), noun=noun)
    every_s = _REDRAW_EVERY_S if kind == "bar" else _LINE_EVERY_S
    next_at = time.monotonic() + every_s

    def look() -> None:
        nonlocal next_at
        if (now := time.monotonic()) >= next_at:
            next_at = now + every_s
            pace.note(is_computing())
            show()
            tell(pace)

    def advance(many: int = 1) -> None:
        pace.done += many
        look()

    if kind == "none":

        def show() -> None:
            pass

        yield advance, look
        return
    if kind != "bar":

        def show() -> None:
            click.echo(json.dumps(pace.as_dict()) if kind == "json" else f"{label}: {pace}", err=True)

        yield advance, look
        return
    # Without a length click draws a bar that moves to and fro.
    endless: Any = (None for _ in range(0))
    with click.progressbar(
        endless, length=pace.total, label=label, show_eta=False, item_show_func=lambda _: _beside(pace), file=sys.stderr
    ) as bar:

        def show() -> None:
            bar.update(pace.done - bar.pos)

        yield advance, look
        show()


def _beside(pace: Pace) -> str:
    rate, left_s = pace.rate, pace.left_s
    of = "" if pace.total is None else f"/{pace.total}"
    speed = "" if rate is None else f"  {rate:,.1f} {pace.short}/s"
    return f"{pace.done}{of}{speed}" + ("" if left_s is None else f"  {spoken(left_s)} left")
