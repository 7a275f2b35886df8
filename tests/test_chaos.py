"""A short run of `scripts/chaos`, under a seed: whatever broke, every promise held."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
from scripts.proofs.faults.catalogue import FAULTS

from tests.paths import ROOT

LIMIT_S = 110


def run_script(module: str, *options: str) -> tuple[int, str]:
    """Exit status and output; nothing is left running, also where it takes too long."""
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)])
    process = subprocess.Popen(
        [sys.executable, "-m", module, *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = process.communicate(timeout=LIMIT_S)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
    return process.returncode, said


@pytest.mark.system
@pytest.mark.timeout(LIMIT_S + 40)
def test_all_holds_while_everything_breaks_for_a_short_while() -> None:
    status, said = run_script(
        "scripts.proofs.chaos",
        *("--seconds", "12", "--seed", "10", "--jobs-per-s", "15", "--fault-every-s", "1", "--lease-s", "2"),
    )
    summary: dict[str, Any] = json.loads(said.splitlines()[-1])
    assert status == 0, said
    assert summary["holds"]
    assert len(summary["faults"]) > 4
    assert summary["acknowledged"] > 50
    assert {summary[name] for name in ("lost", "duplicated", "unexpected", "innocents_failed")} == {0}


def test_every_fault_says_in_a_line_what_it_does() -> None:
    status, said = run_script("scripts.proofs.chaos", "--list-faults")
    assert status == 0
    assert [line.split()[0] for line in said.splitlines()] == list(FAULTS)
    assert all(len(line) < 120 for line in said.splitlines())
