"""`scripts/bench SUBJECT`: see `scripts/bench --help`."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import click

from . import again, budgets, embed, generate, latency, padding, queue, tokens
from .fleets import fleet
from .http import gateway
from .means import peers

if TYPE_CHECKING:
    from types import FrameType


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Measure Impetus beside its peers, on this machine, the sides in turn within one run.

    Every command brings a Redis-compatible server of its own on loopback and takes it away again. Each prints a table
    and writes the same as JSON, with the machine's load before and after: figures from a loaded machine are noise.
    """


main.add_command(embed.command)
main.add_command(again.command)
main.add_command(budgets.command)
main.add_command(padding.command)
main.add_command(queue.command)
main.add_command(tokens.command)
main.add_command(latency.command)
main.add_command(fleet.command)
main.add_command(generate.command)
main.add_command(gateway.command)
main.add_command(peers.command)


def _end_in_order(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    # Told to go, a bench takes its servers and workers with it, as after Ctrl-C.
    signal.signal(signal.SIGTERM, _end_in_order)
    main(prog_name="scripts/bench")
