"""`impetus-worker` on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from impetus_backends.dispatcher import get_compute_dispatcher
from impetus_backends.hardware import Hardware, detect
from impetus_worker.cli import main

LINUX = Hardware("Linux", "x86_64", "some Xeon", 8, 16 * 2**30)
M4 = Hardware("Darwin", "arm64", "Apple M4", 10, 32 * 2**30)
ROSETTA = Hardware("Darwin", "x86_64", "Apple M2", 8, 16 * 2**30, rosetta=True)


def test_doctor_says_what_it_would_claim_and_why() -> None:
    said = CliRunner().invoke(main, ["doctor"])
    assert said.exit_code == 0
    assert "embedding   would claim embedding and embedding-bulk with the " in said.output
    assert "all-MiniLM-L6-v2" in said.output


def test_doctor_speaks_json_and_leaves_out_the_role_that_was_not_asked_for() -> None:
    said = CliRunner().invoke(main, ["doctor", "--json", "--roles", "embedding", "--embedding-backend", "simulated"])
    report = json.loads(said.output)
    assert report["roles"]["embedding"]["claims"] == ["embedding", "embedding-bulk"]
    assert report["roles"]["embedding"]["backend"] == "simulated"
    assert report["roles"]["generation"] == {
        "claims": [],
        "backend": None,
        "then": [],
        "model": "mlx-community/Qwen2.5-0.5B-Instruct-4bit",
        "reasons": ["left out by --roles"],
    }


def test_a_role_that_does_not_exist_is_a_usage_error() -> None:
    said = CliRunner().invoke(main, ["doctor", "--roles", "embedding,cooking"])
    assert said.exit_code == 2
    assert "embedding, generation" in said.output


def test_embeddings_go_to_core_ml_first_on_apple_silicon_and_to_the_cpu_elsewhere() -> None:
    assert get_compute_dispatcher(M4).embedding_backend.candidates[0] == "coreml"
    assert get_compute_dispatcher(LINUX).embedding_backend.candidates == ("cpu", "numpy")
    rosetta = get_compute_dispatcher(ROSETTA).embedding_backend
    assert rosetta.candidates == ("cpu", "numpy")
    assert "Rosetta" in rosetta.reasons[0]


def test_a_probe_that_knows_nothing_leaves_a_description_all_the_same() -> None:
    machine = detect(lambda name: "")
    assert machine.cores >= 1
    assert machine.chip


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
        f"from impetus_worker.cli import main; main({arguments!r})"
    )
    return subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False, cwd=Path.cwd())
