"""The process that converts for texts that came: it answers, and leaves nothing that does not serve."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from impetus_backends.embedding.devices.backends import make_backend, make_packaged
from impetus_backends.embedding.devices.coreml.emulated import EmulatedDevice
from impetus_backends.embedding.devices.coreml.form import COREML
from impetus_backends.embedding.devices.packages import converting, fitter
from impetus_backends.embedding.devices.packages.buckets import Bucket
from impetus_backends.embedding.devices.packages.cache import PackageCache
from impetus_backends.embedding.devices.packages.convert import Order, add_measured
from impetus_backends.embedding.folder.weights import fingerprint
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_backends.errors import BackendError

from ...worker.conftest import fleet  # noqa: F401 - a fixture
from ..conftest import small_model
from .fitted_shapes import CONFIG, POOR, request_of

if TYPE_CHECKING:
    from pathlib import Path


def test_a_model_that_was_replaced_since_it_was_loaded_is_not_converted(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="is another one than when it was loaded: restart the worker"):
        converting.convert({**request_of(small_model("bge"), tmp_path), "fingerprint": "0" * 16})
    assert not list(tmp_path.rglob(COREML.file))


def test_the_process_answers_with_the_reason_and_leaves_nothing(tmp_path: Path) -> None:
    request = request_of(tmp_path / "gone", tmp_path / "cache")
    ended = subprocess.run(
        [sys.executable, "-P", "-m", fitter.CONVERTING],
        input=json.dumps(request).encode() + b"\n",
        stdout=subprocess.PIPE,
        check=False,
    )
    # Standard input was closed: it may end at that before it can answer.
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert (ended.returncode, answers) == (1, []) or "gone" in answers[-1]["reason"]
    assert not list(tmp_path.rglob(COREML.file))


def test_a_package_that_loses_too_much_is_not_kept(tmp_path: Path) -> None:
    cache, encoder = PackageCache(COREML, tmp_path), TextEncoder.load(small_model("bge"))
    rows = [text.ids for text in encoder.encode([f"text {number}" for number in range(12)])]
    order = Order("bge", CONFIG, "int8", (Bucket(1, 40),), rows, limit=0.0)
    reference = make_backend("numpy", CONFIG)
    reference.load()
    with pytest.raises(BackendError, match=r"the package loses 0\.\d+%, and 0\.00% is allowed"):
        add_measured(order, EmulatedDevice(), reference, cache)
    assert not list(tmp_path.rglob(COREML.file))
    agreement = add_measured(replace(order, limit=0.01), EmulatedDevice(), reference, cache)
    assert 0 < agreement.loss <= 0.01
    assert cache.preferred(fingerprint(CONFIG)) is None


def test_packaged_backends_are_made_by_name_for_another_cache(tmp_path: Path) -> None:
    backend = make_packaged("coreml-emulated", CONFIG, cache=tmp_path, buckets=POOR)
    assert backend.cache.root == tmp_path
