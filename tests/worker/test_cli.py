"""`impetus-worker` on the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from impetus_worker.cli.main import main


def test_a_role_that_does_not_exist_is_a_usage_error() -> None:
    said = CliRunner().invoke(main, ["doctor", "--roles", "embedding,cooking"])
    assert said.exit_code == 2
    assert "embedding, generation" in said.output


@pytest.mark.parametrize("command", ["run", "doctor"])
def test_without_the_worker_extra_a_command_says_what_to_install(command: str) -> None:
    said = _without("numpy", [command])
    assert said.returncode == 1
    assert "pip install 'impetus-batch[worker]'" in said.stderr
    assert "Traceback" not in said.stderr


def test_help_needs_no_extra() -> None:
    said = _without("numpy", ["run", "--help"])
    assert said.returncode == 0
    assert "--max-wait-ms" in said.stdout


def _without(package: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs the command where a package cannot be found."""
    hide = (
        "import importlib.util as u, sys; find = u.find_spec; "
        f"u.find_spec = lambda name, *rest: None if name == {package!r} else find(name, *rest); "
        f"sys.modules[{package!r}] = None; "
        f"from impetus_worker.cli.main import main; main({arguments!r})"
    )
    return subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False, cwd=Path.cwd())
