"""Beginnings of prompts on disk: they spare a new process what an old one read, and what is broken is never used."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from impetus_backends.errors import ModelError
from impetus_backends.generation.engine import EngineLimits, GenerationEngine
from impetus_backends.generation.models.loader import load
from impetus_backends.generation.opening import open_generation_engine
from impetus_backends.generation.quantization.keys_and_values import pack_keys_and_values
from tests.generation.batch.test_prefixes import letters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from impetus_backends.generation.models.loader import LoadedModel

pytestmark = pytest.mark.system
STEM = letters(4, 400)
ONE, TWO, THREE = (STEM + letters(20 + at, 40) for at in range(3))


@pytest.fixture
def start(loaded: LoadedModel, info: Any, tmp_path: Path) -> Iterator[Callable[..., GenerationEngine]]:
    """An engine as after a restart: it knows what is in the folder, and nothing else."""
    made: list[GenerationEngine] = []

    def make(of: LoadedModel | None = None, **limits: Any) -> GenerationEngine:
        folder = limits.pop("prefix_cache_dir", tmp_path / "prefixes")
        made.append(GenerationEngine(of or loaded, info, EngineLimits(4, prefix_cache_dir=folder, **limits)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "prefixes").glob("*/*"))


@pytest.mark.parametrize("name", ["loaded", "windowed", "recurrent"])
def test_what_two_prompts_began_with_is_spared_a_third_after_a_restart(
    name: str, request: Any, start: Any, work: Any, drive: Any, tmp_path: Path
) -> None:
    of = request.getfixturevalue(name)
    alone = drive(start(of, prefix_cache_dir=None), work(3, THREE, max_tokens=8))[3]
    engine = start(of)
    drive(engine, work(0, STEM, max_tokens=2), work(1, ONE, max_tokens=2))
    spared = {drive(engine, work(2, TWO, max_tokens=2))[2].cached_tokens}
    engine.close()
    (file,) = files(tmp_path)
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    ended = drive(start(of), work(3, THREE, max_tokens=8))[3]
    assert ended.cached_tokens in (spared | {399})
    assert ended.cached_tokens > 300
    assert ended.text == alone.text
    assert alone.cached_tokens == 0


def test_what_one_prompt_alone_had_is_not_written(start: Any, work: Any, drive: Any, tmp_path: Path) -> None:
    drive(start(), *(work(at, letters(at, 300), max_tokens=2) for at in range(4)))
    assert not files(tmp_path)


def test_a_beginning_is_written_once(start: Any, work: Any, drive: Any, tmp_path: Path) -> None:
    for _ in range(2):
        engine = start()
        for at in range(6):
            drive(engine, work(at, STEM + letters(20 + at, 30 + at), max_tokens=2))
        engine.close()
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "rename", "gone", "words"])
def test_a_file_that_is_broken_is_removed_and_never_used(
    start: Any, work: Any, drive: Any, tmp_path: Path, harm: str
) -> None:
    engine = start()
    for at, prompt in enumerate((ONE, TWO)):
        drive(engine, work(at, prompt, max_tokens=2))
    right = drive(engine, work(3, THREE, max_tokens=8))[3]
    engine.close()
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    restarted = start() if harm == "gone" else None
    match harm:
        case "flip":
            file.write_bytes(content)
        case "cut":
            file.write_bytes(content[:-4000])
        case "empty":
            file.write_bytes(b"")
        case "rename":
            file.rename(file.with_name(f"{0:032x}.safetensors"))
        case "gone":
            file.unlink()
        case _:
            file.write_text("words " * 100)
    ended = drive(restarted or start(), work(3, THREE, max_tokens=8))[3]
    assert (ended.text, ended.cached_tokens) == (right.text, 0)
    assert not files(tmp_path)


def test_files_of_another_model_are_neither_used_nor_touched(
    start: Any, work: Any, drive: Any, tmp_path: Path, windowed: Any, loaded: Any
) -> None:
    from dataclasses import replace

    engine = start()
    for at, prompt in enumerate((ONE, TWO)):
        drive(engine, work(at, prompt, max_tokens=2))
    engine.close()
    other = replace(windowed, fingerprint="0123456789abcdef")
    assert drive(start(other), work(3, THREE, max_tokens=2))[3].cached_tokens == 0
    assert len(files(tmp_path)) == 1
    # One that says that it is this model, and is another: its caches are of other kinds.
    assert drive(start(windowed), work(3, THREE, max_tokens=2))[3].cached_tokens == 0
    assert not files(tmp_path)


def test_the_folder_keeps_to_its_bytes_and_those_unused_for_longest_go(
    start: Any, work: Any, drive: Any, tmp_path: Path
) -> None:
    engine = start(prefix_cache_dir_bytes=500_000)
    for number in range(6):
        for at in range(2):
            drive(engine, work(at, letters(number, 400) + letters(20 + at, 40), max_tokens=2))
        for age, file in enumerate(sorted(files(tmp_path), key=lambda each: each.stat().st_mtime)):
            os.utime(file, (1000 + age, 1000 + age))
        assert sum(file.stat().st_size for file in files(tmp_path)) <= 500_000
    engine.close()
    kept = len(files(tmp_path))
    assert 0 < kept < 6
    engine = start(prefix_cache_dir_bytes=500_000)
    spared = [
        drive(engine, work(9, letters(n, 400) + letters(30, 40), max_tokens=2))[9].cached_tokens for n in range(6)
    ]
    assert [each > 0 for each in spared] == [False] * (6 - kept) + [True] * kept


def test_packed_keys_and_values_are_kept_as_well(
    make_tiny_model: Any, tmp_path: Path, start: Any, work: Any, drive: Any
) -> None:
    from scripts.models.make_tiny_model import SIZES

    sizes = SIZES["tiny"]._replace(heads=2, key_value_heads=1)
    packed = pack_keys_and_values(load(make_tiny_model(tmp_path / "heads", 0, sizes)), 8)
    engine = start(packed)
    for at, prompt in enumerate((ONE, TWO)):
        drive(engine, work(at, prompt, max_tokens=2))
    right = drive(engine, work(3, THREE, max_tokens=8))[3]
    engine.close()
    ended = drive(start(packed), work(3, THREE, max_tokens=8))[3]
    assert ended.cached_tokens > 300
    assert ended.text == right.text


def test_a_deterministic_request_reads_no_file(start: Any, work: Any, drive: Any) -> None:
    engine = start()
    for at, prompt in enumerate((ONE, TWO)):
        drive(engine, work(at, prompt, max_tokens=2))
    engine.close()
    assert drive(start(), work(3, THREE, max_tokens=2, deterministic=True))[3].cached_tokens == 0


def test_a_folder_that_cannot_be_is_one_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    limits = EngineLimits(1, prefix_cache_dir=tmp_path / "file" / "folder")
    with pytest.raises(ModelError, match=r"^--prefix-cache-dir: .* cannot be used: Not a directory"):
        open_generation_engine(tiny_folder, model_name="tiny", aliases=(), limits=limits)
