"""`impetus top`: what `impetus status` shows, again and again, with rates."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING

import click

from ..servers.discovery import find_redis_urls
from ..watching.fleet import merged
from .settings.server import patience_option, patient_producers, redis_urls_option
from .status import lines, see_all

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..watching.fleet import Fleet

_TO_THE_TOP, _TO_THE_LINES_END, _TO_THE_SCREENS_END = "\x1b[H", "\x1b[K", "\x1b[J"


@click.command()
@click.option("--every", "every_s", type=click.FloatRange(0.2, 3600), default=2.0, show_default=True, metavar="SECONDS",
              help="How often to look.")  # fmt: skip
@patience_option
@redis_urls_option
def top(every_s: float, patience_s: float, redis_urls: tuple[str, ...]) -> None:
    """Watch the queues and their workers in this terminal, until Ctrl-C.

    Like `impetus status`, with how long the first job of each queue waits, and how many end a second. Reads only.

    \b
    Examples:
        impetus top
        impetus top --every 10 --redis-url redis://mac-mini.local:6379/0
    """
    if not sys.stdout.isatty():
        raise click.UsageError("this is for a terminal; `impetus status --json` is for programs")
    producers, urls = patient_producers(redis_urls, patience_s).servers, find_redis_urls(redis_urls)
    before, seen_at = None, 0.0
    while True:
        servers, now = see_all(producers, urls), time.monotonic()
        fleet = merged([server.fleet for server in servers])
        rates: dict[str, float] = {} if before is None else ended_per_s(before, fleet, now - seen_at)
        _show(lines(servers, rates))
        before, seen_at = fleet, now
        time.sleep(every_s)


def ended_per_s(before: Fleet, now: Fleet, seconds: float) -> dict[str, float]:
    """How many jobs of each queue ended a second, going by what is kept of them: those whose results expired meanwhile
    are not seen, and nothing is less than none.
    """

    def ended(fleet: Fleet) -> dict[str, int]:
        return {queue.name: (queue.finished or 0) + (queue.failed or 0) for queue in fleet.queues}

    earlier = ended(before)
    return {name: max(0, count - earlier.get(name, count)) / max(seconds, 1e-3) for name, count in ended(now).items()}


def _show(said: Iterable[str]) -> None:
    """As much as the terminal has room for, over what was there before."""
    width, height = shutil.get_terminal_size()
    shown = [line[:width] + _TO_THE_LINES_END for line in said][: height - 1]
    sys.stdout.write(_TO_THE_TOP + "\r\n".join(shown) + _TO_THE_SCREENS_END)
    sys.stdout.flush()
