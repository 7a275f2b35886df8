"""`impetus-worker`: the commands of the machine that does the work. Imports nothing heavy until one needs it."""

from __future__ import annotations

import click

from impetus_producer.cli.late import LateGroup
from impetus_producer.cli.settings.config_file import with_config_file

_COMMANDS = {
    "convert": f"{__package__}.convert",
    "doctor": f"{__package__}.doctor",
    "run": f"{__package__}.run",
    "service": f"{__package__}.service",
    "verify": f"{__package__}.verify",
}


@click.group(
    cls=LateGroup, later=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="impetus-batch")
def main() -> None:
    """Work the Impetus queues on this machine: embeddings and generations.

    \b
    impetus-worker doctor     what this machine would do, and why
    impetus-worker run        do it
    impetus-worker service    do it whenever you are logged in
    impetus-worker convert    make a model smaller, or a Core ML package of it, and measure what that costs
    impetus-worker verify     check on a Mac what was built without one
    """


with_config_file("impetus-worker", main)
