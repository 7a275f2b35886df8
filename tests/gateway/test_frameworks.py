"""LangChain's and LlamaIndex's clients for OpenAI, unchanged, from an environment of their own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.paths import ROOT

if TYPE_CHECKING:
    from .serving import Serving

PYTHON = ROOT / ".venv-frameworks" / "bin" / "python"

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not PYTHON.exists(), reason="there is no .venv-frameworks: scripts/frameworks makes it"),
]


def test_langchain_and_llamaindex_get_the_queues_vectors_and_texts(served: Serving) -> None:
    texts = ["one", "two and a half", "three"]
    program = Path(__file__).with_name("frameworks.py")
    ran = subprocess.run(
        [PYTHON, program, served.url, json.dumps(texts)], capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    said = json.loads(ran.stdout)
    expected = np.asarray(served.producer.embed(texts).result(30).vectors)
    for name in ("langchain", "llamaindex"):
        assert np.asarray(said[name], dtype=np.float32).tobytes() == expected.tobytes(), name
    assert np.asarray(said["langchain_query"], dtype=np.float32).tobytes() == expected[0].tobytes()
    text = served.producer.generate(messages=[{"role": "user", "content": "Go on."}], temperature=0).result(30).text
    assert said["chat"] == said["streamed"] == text
