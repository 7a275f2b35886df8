"""What a batch computed with is there for the next one, and is given back with the model."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from impetus_backends.models import ModelFiles

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")

FAULTS = """
import resource, sys
from pathlib import Path
import numpy as np
from impetus_backends.embedding.devices.backends import make_backend

backend = make_backend("cpu", Path(sys.argv[1]), threads=1)
backend.load()
batches = [[np.arange(1000, 1000 + length, dtype=np.int32)] * (1024 // length) for length in (16, 200, 60, 120)]
faults = []
while len(faults) < 12 and min(faults, default=500) >= 500:  # the heap finds its shape in the first few rounds
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for batch in batches:
        backend.embed(batch)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""

KEPT = """
from impetus_backends.machine import footprint, heap

heap.keep()
pieces = [bytearray(2**20) for _ in range(200)]
last = bytearray(2**20)
full = footprint.used_bytes()
del pieces
kept = footprint.used_bytes()
heap.give_back()
print((full - kept) // 2**20, (kept - footprint.used_bytes()) // 2**20)
"""


def said_by(program: str, *arguments: object) -> list[int]:
    """What a process of its own prints: this one's heap has a history."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return [int(word) for word in subprocess.run(command, capture_output=True, check=True).stdout.split()]


def test_a_batch_computes_in_the_memory_that_those_before_it_used(minilm: ModelFiles) -> None:
    (least_faults,) = said_by(FAULTS, minilm.folder)
    assert least_faults < 500  # 3,500 and more where they go back to the system


def test_what_is_kept_is_given_back_when_that_is_asked() -> None:
    at_once, when_asked = said_by(KEPT)
    assert at_once < 20
    assert when_asked > 180
