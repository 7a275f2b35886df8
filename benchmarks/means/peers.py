"""The peers' own environments: made on demand, with pinned versions, beside `.venv` in the checkout.

`.venv-peers` holds sentence-transformers and the task queues, `.venv-peers-infinity` Infinity, whose pins contradict
the others'. Ours never imports theirs: they run as programs (`peer_programs/`).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "benchmarks" / "peer_programs"

_TORCH = "torch==2.13.0"
PINS = {
    # arq and redis-py: arq 0.28 asks for redis[hiredis] < 6, so every queue here has the C parser, as our workers have.
    "peers": (
        "sentence-transformers==6.2.0", "transformers==5.23.0", "rq==3.0.0", "huey==3.5.4", "dramatiq[redis]==2.2.1",
        "arq==0.28.0", "celery[redis]==5.6.3", "celery-batches==0.11", "redis==5.3.1", "hiredis==3.5.0",
    ),
    "peers-infinity": ("infinity-emb[torch,server]==0.0.78", "sentence-transformers==3.4.1", "transformers==4.57.6"),
}  # fmt: skip


def python_of(environment: str = "peers") -> Path:
    """The interpreter of a peers' environment, which is made or renewed first if need be."""
    folder = ROOT / f".venv-{environment}"
    python, stamp = folder / "bin" / "python", folder / "impetus-bench"
    wanted = hashlib.sha256("\n".join((_TORCH, *PINS[environment])).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    click.echo(f"making .venv-{environment} (minutes; torch and {', '.join(PINS[environment])})", err=True)
    try:
        if not python.exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        # First and alone, so that what follows takes the build that is there. On Linux the default wheel of torch
        # brings CUDA, gigabytes of it: who wants the CPU build points pip at it, or installs it here beforehand.
        subprocess.run([*pip, _TORCH], check=True)
        subprocess.run([*pip, *PINS[environment]], check=True)
    except subprocess.CalledProcessError as error:
        raise click.ClickException(f"the peers' environment .venv-{environment} could not be made: {error}") from None
    stamp.write_text(wanted)
    return python


@click.command("peers")
@click.option("--remove", is_flag=True, help="Remove the environments instead.")
def command(remove: bool) -> None:
    """Make the environments of the peers (the other commands do so by themselves when they need one).

    torch comes from wherever pip is told to look. On Linux its default wheel carries CUDA: for the CPU build, set
    pip's own settings (such as PIP_FIND_LINKS) before.
    """
    for environment in PINS:
        if remove:
            shutil.rmtree(ROOT / f".venv-{environment}", ignore_errors=True)
        else:
            click.echo(f"{environment}: {python_of(environment)}")
