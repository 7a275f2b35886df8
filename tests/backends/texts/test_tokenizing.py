"""What importing the library that reads tokenizers costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

_COUNTED = """
import sys
reads = []
sys.addaudithook(lambda event, given: event == "open" and reads.append(str(given[0])))
{}
print(sum(path.endswith("modeling_bert.py") for path in reads))
"""


@pytest.mark.parametrize(
    "imported",
    [
        "from impetus_backends.tokenizing import import_transformers; import_transformers().AutoTokenizer",
        "from impetus_backends.generation.models.libraries import import_libraries; import_libraries()",
    ],
)
def test_the_files_of_the_models_that_are_not_used_are_read_once(imported: str) -> None:
    counted = subprocess.run(
        [sys.executable, "-c", _COUNTED.format(imported)], capture_output=True, text=True, check=False
    )
    assert counted.stdout == "1\n", counted.stderr
