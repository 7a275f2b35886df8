"""A package is in the cache whole or not at all, under a name that changes with all that decides it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from impetus_backends.embedding.devices.coreml import quantize
from impetus_backends.embedding.devices.coreml.form import COREML
from impetus_backends.embedding.devices.coreml.library import coremltools
from impetus_backends.embedding.devices.packages.buckets import Bucket
from impetus_backends.embedding.devices.packages.cache import PackageCache, Recipe

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = Recipe("0123456789abcdef", "none", (Bucket(1, 32), Bucket(8, 64)))


def write(folder: Path) -> None:
    (folder / COREML.file).mkdir()
    (folder / COREML.file / "weights").write_bytes(b"weights")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "coreml").iterdir())


def test_what_was_added_is_found_again_and_nothing_else_is(tmp_path: Path) -> None:
    cache = PackageCache(COREML, tmp_path)
    assert cache.find(RECIPE) is None
    entry = cache.add(RECIPE, write)
    assert (entry / COREML.file / "weights").read_bytes() == b"weights"
    assert cache.find(RECIPE) == entry
    assert cache.find(replace(RECIPE, mode="int8")) is None
    cache.remove(RECIPE)
    assert cache.find(RECIPE) is None
    assert names(tmp_path) == []


def test_the_name_changes_with_all_that_decides_a_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipes = [
        RECIPE,
        replace(RECIPE, fingerprint="f" * 16),
        replace(RECIPE, mode="int8"),
        replace(RECIPE, buckets=(Bucket(1, 32), Bucket(8, 96))),
        replace(RECIPE, calibration="texts"),
    ]
    cache = PackageCache(COREML, tmp_path)
    found = {cache.name(recipe) for recipe in recipes}
    monkeypatch.setattr(coremltools(), "__version__", "99.0")
    found.add(cache.name(RECIPE))
    changed = tmp_path / "quantize.py"
    changed.write_text("COLOURS = 32")
    monkeypatch.setattr(quantize, "__file__", str(changed))
    found.add(cache.name(RECIPE))
    assert len(found) == len(recipes) + 2


def test_a_conversion_that_fails_leaves_nothing_and_may_be_tried_again(tmp_path: Path) -> None:
    cache = PackageCache(COREML, tmp_path)

    def fail(folder: Path) -> None:
        write(folder)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        cache.add(RECIPE, fail)
    assert cache.find(RECIPE) is None
    assert names(tmp_path) == []
    assert cache.add(RECIPE, write) == cache.find(RECIPE)


def test_what_a_killed_process_left_is_never_used_and_goes_after_a_day(tmp_path: Path) -> None:
    cache = PackageCache(COREML, tmp_path)
    seen: list[Path] = []

    def watch(folder: Path) -> None:
        write(folder)
        # As it is at every moment before the end.
        assert cache.find(RECIPE) is None
        seen.append(folder)

    cache.add(RECIPE, watch)
    fresh, old = seen[0].with_name(".unfinished-fresh"), seen[0].with_name(".unfinished-old")
    for folder in (fresh, old):
        folder.mkdir()
        write(folder)
    os.utime(old, (0, 0))
    cache.add(replace(RECIPE, mode="int8"), write)
    assert fresh.is_dir()
    assert not old.exists()


def test_of_two_that_convert_at_once_the_first_wins_and_both_use_it(tmp_path: Path) -> None:
    ours, theirs = PackageCache(COREML, tmp_path), PackageCache(COREML, tmp_path)
    found: list[Path] = []

    def overtaken(folder: Path) -> None:
        write(folder)
        (folder / "slow").touch()
        found.append(theirs.add(RECIPE, write))

    entry = ours.add(RECIPE, overtaken)
    assert found == [entry]
    assert not (entry / "slow").exists()
    assert names(tmp_path) == [entry.name]


def test_the_preferred_package_of_a_model_is_remembered(tmp_path: Path) -> None:
    cache = PackageCache(COREML, tmp_path)
    assert cache.preferred(RECIPE.fingerprint) is None
    cache.prefer(RECIPE)
    cache.prefer(replace(RECIPE, mode="int8"))
    assert PackageCache(COREML, tmp_path).preferred(RECIPE.fingerprint) == replace(RECIPE, mode="int8")
    (tmp_path / "coreml" / f"{RECIPE.fingerprint}.json").write_text('{"mode": "int8"}')
    assert cache.preferred(RECIPE.fingerprint) is None


@pytest.mark.parametrize(
    "change",
    [
        {"buckets": []},
        {"buckets": [{"batch": 0, "length": 32, "texts": 1}]},
        {"buckets": [{"batch": "1", "length": 32, "texts": 1}]},
        {"buckets": [{"batch": 1, "length": 1e9, "texts": 1}]},
        {"buckets": [7]},
        {"buckets": None},
        {"mode": "int3"},
        {"mode": ["none"]},
        {"fingerprint": "another"},
        {"calibration": 5},
        {"more": 1},
    ],
)
def test_a_preference_that_is_no_recipe_for_the_model_is_none(change: dict[str, object], tmp_path: Path) -> None:
    cache = PackageCache(COREML, tmp_path)
    cache.prefer(RECIPE)
    assert cache.preferred(RECIPE.fingerprint) == RECIPE
    file = tmp_path / "coreml" / f"{RECIPE.fingerprint}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert cache.preferred(RECIPE.fingerprint) is None
    for garbage in (b"", b"\xff", b"[]", b"[" * 100_000):
        file.write_bytes(garbage)
        assert cache.preferred(RECIPE.fingerprint) is None


WRITING = """
import sys
from pathlib import Path
from impetus_backends.embedding.devices.packages.cache import make_whole

def write(folder):
    (folder / "half").write_text("")
    print(flush=True)
    sys.stdin.read()

make_whole(Path(sys.argv[1]), write)
"""


def test_what_a_process_left_that_was_killed_goes_with_the_next_conversion_and_others_work_stays(
    tmp_path: Path,
) -> None:
    cache = PackageCache(COREML, tmp_path)
    entry = cache.add(RECIPE, write)
    processes = []
    for target in (tmp_path / "coreml" / "one", tmp_path / "coreml" / "other", entry / "ane-15.1"):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITING, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        processes.append(process)
    assert len(list(tmp_path.rglob("half"))) == 3
    for process in (processes[0], processes[2]):
        process.kill()
        process.communicate()
    cache.add(replace(RECIPE, mode="int8"), write)
    assert len(list(tmp_path.rglob("half"))) == 1
    processes[1].communicate()
    assert [file.name for file in (tmp_path / "coreml" / "other").iterdir()] == ["half"]
    assert not list(tmp_path.rglob(".unfinished-*"))
