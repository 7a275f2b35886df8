"""A short run of `scripts/fuzz`, under a seed: hostile jobs, records and keys harm nobody but themselves."""

from __future__ import annotations

import json

import pytest

from .test_chaos import run_script


@pytest.mark.system
def test_hostile_jobs_records_and_keys_under_a_seed() -> None:
    status, said = run_script("scripts.proofs.fuzz", "--seed", "11", "--count", "4000", "--seconds", "60")
    assert status == 0, said
    report = json.loads(said.splitlines()[-1])
    assert report["holds"]
    assert report["hostile_jobs"] >= 4000
    assert report["ordinary_jobs"] >= 200
