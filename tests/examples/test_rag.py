"""Documents indexed and asked with LangChain, from an environment of its own, through a gateway and real models."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.gateway.serving import REAL_EMBEDDINGS, REAL_GENERATION
from tests.gateway.test_frameworks import PYTHON
from tests.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.gateway.serving import Serving

pytestmark = pytest.mark.system
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def worker_options() -> tuple[str, ...]:
    return (*REAL_EMBEDDINGS, *REAL_GENERATION)


@pytest.mark.skipif(not PYTHON.exists(), reason="there is no .venv-frameworks: scripts/frameworks makes it")
def test_documents_are_indexed_and_asked_through_the_gateway(served: Serving, tmp_path: Path) -> None:
    (tmp_path / "leases.md").write_text("# Leases\n\nA lease lasts 20 seconds, and is renewed while the job runs.\n")
    (tmp_path / "other.md").write_text("Something else altogether is written in this file, and is no answer.\n")
    ran = subprocess.run(
        [PYTHON, EXAMPLES / "rag_index.py", tmp_path, "How long does a lease last?"],
        env={**os.environ, "OPENAI_BASE_URL": f"{served.url}/v1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.strip()
    assert "leases.md" in ran.stderr
