"""What is said on standard output in passing: whether anybody reads it is nothing to the work."""

from __future__ import annotations

import os
import sys

import click


def announce(text: str) -> None:
    """Prints a line. Where its reader is gone, or its disk full, this and all after it goes nowhere."""
    try:
        click.echo(text)
    except OSError:
        # What could not be written would be tried again at the end, and give the program another exit status.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
