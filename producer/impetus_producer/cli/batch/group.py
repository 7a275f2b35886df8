"""`impetus batch`: files of requests in the format of OpenAI's Batch API."""

from __future__ import annotations

import click

from . import remote as batch_remote
from .run import run


@click.group()
def batch() -> None:
    """Answer files of requests in the format of OpenAI's Batch API: by this command, or by a gateway.

    \b
    Here and now, gone on with by the same command:
        impetus batch run requests.jsonl -o answers.jsonl

    \b
    By a gateway (impetus serve), which goes on by itself:
        impetus batch submit requests.jsonl
        impetus batch status
        impetus batch output batch_… -o answers.jsonl
    """


for _command in (run, batch_remote.submit, batch_remote.status, batch_remote.cancel, batch_remote.output):
    batch.add_command(_command)
