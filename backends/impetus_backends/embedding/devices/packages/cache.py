"""Packages kept between runs: each in a folder named by all that decided it, whole or not there at all.

A package is written beside its place and renamed into it, so nobody ever sees half of one, and of two processes that
convert the same model at once the first to finish wins and the other uses what it made.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impetus_backends.cache import cache_folder, write_whole
from impetus_backends.embedding import encoder
from impetus_backends.embedding.architectures import encode, parts, post_norm, pre_norm, turned
from impetus_backends.embedding.devices import reference
from impetus_backends.embedding.devices.packages.buckets import Bucket
from impetus_backends.embedding.devices.packages.served import Served
from impetus_backends.embedding.folder.transformer import angles

if TYPE_CHECKING:
    from collections.abc import Callable

    from impetus_backends.embedding.devices.packages.form import Form

_RECIPE = "recipe.json"
_FITTED = "fitted"
_UNFINISHED = ".unfinished-"
_WRITING = ".writing"
"""Of a folder that is being written: locked by who does."""
_ABANDONED_S = 24 * 3600
_LARGEST = 2**20
_WRITERS = (encode, parts, post_norm, pre_norm, turned, encoder, reference, angles)
"""Of ours, of every form; a form has more."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides what is in a package."""

    fingerprint: str
    """Of the model: `weights.fingerprint`."""
    mode: str
    buckets: tuple[Bucket, ...]
    calibration: str = ""
    """A digest of the texts that activations were calibrated on."""


class PackageCache:
    """The packages of one form and one user, for any number of processes at once."""

    def __init__(self, form: Form, folder: Path | None = None) -> None:
        self.form = form
        self.root = folder or cache_folder()
        self._folder = self.root / form.name

    def package(self, entry: Path) -> Path:
        """The package in a folder that this cache gave."""
        return entry / self.form.file

    def name(self, recipe: Recipe) -> str:
        """Of a recipe's folder. Another version of the library, or of our own writing, makes another package."""
        content = json.dumps([asdict(recipe), self.form.version(), self._writers()])
        return f"{recipe.fingerprint}-{recipe.mode}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def _writers(self) -> str:
        """A digest of the modules that decide what a package holds."""
        digest = hashlib.sha256()
        for module in (*_WRITERS, *self.form.writers):
            digest.update(Path(str(module.__file__)).read_bytes())
        return digest.hexdigest()

    def find(self, recipe: Recipe) -> Path | None:
        """The folder that holds the package, if it is there."""
        entry = self._folder / self.name(recipe)
        return entry if (entry / _RECIPE).is_file() else None

    def add(self, recipe: Recipe, write: Callable[[Path], None]) -> Path:
        """The folder with what `write` put into it. Raises whatever `write` raises, and then leaves nothing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._clear_abandoned()
        target = self._folder / self.name(recipe)

        def write_all(folder: Path) -> None:
            write(folder)
            (folder / _RECIPE).write_text(json.dumps(asdict(recipe), indent=2))

        make_whole(target, write_all)
        return target

    def remove(self, recipe: Recipe) -> None:
        """Renamed first, so that nobody finds half of it either."""
        entry = self.find(recipe)
        if entry is not None:
            doomed = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self._folder))
            entry.rename(doomed / entry.name)
            shutil.rmtree(doomed, ignore_errors=True)

    def mark_fitted(self, recipe: Recipe) -> None:
        """Says of a package that it was made for the texts that came, so that it may go when another such is."""
        if (entry := self.find(recipe)) is not None:
            (entry / _FITTED).touch()

    def is_fitted(self, recipe: Recipe) -> bool:
        entry = self.find(recipe)
        return entry is not None and (entry / _FITTED).exists()

    def served(self, fingerprint: str, longest: int) -> Served:
        """What is known of the texts of a model, none of more tokens than `longest`."""
        return Served(self._folder / f"{fingerprint}.served.json", longest)

    def prefer(self, recipe: Recipe) -> None:
        """Has backends use this package for its model from now on; raises `OSError`."""
        write_whole(self._folder / f"{recipe.fingerprint}.json", json.dumps(asdict(recipe)))

    def preferred(self, fingerprint: str) -> Recipe | None:
        """What was last preferred for a model; nothing where that cannot be read, or is no recipe for it."""
        try:
            found: dict[str, Any] = json.loads((self._folder / f"{fingerprint}.json").read_text(encoding="utf-8"))
            found["buckets"] = tuple(Bucket(**bucket) for bucket in found["buckets"])
            recipe = Recipe(**found)
            sizes = [size for bucket in recipe.buckets for size in (bucket.batch, bucket.length, bucket.texts)]
            sound = bool(sizes) and all(type(size) is int and 0 < size <= _LARGEST for size in sizes)
            sound = sound and recipe.fingerprint == fingerprint and recipe.mode in self.form.modes
            return recipe if sound and isinstance(recipe.calibration, str) else None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def _clear_abandoned(self) -> None:
        """What processes left that were killed while they wrote."""
        for pattern in (f"{_UNFINISHED}*", f"*/{_UNFINISHED}*"):
            for folder in self._folder.glob(pattern):
                with contextlib.suppress(OSError):
                    if _is_abandoned(folder):
                        shutil.rmtree(folder, ignore_errors=True)


def make_whole(target: Path, write: Callable[[Path], None]) -> None:
    """The folder `target` with all that `write` puts into an empty one, unless another process made it meanwhile.

    Raises whatever `write` raises, and then leaves nothing.
    """
    made = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=target.parent))
    try:
        with (made / f"{_WRITING}.new").open("w") as lock:
            # Locked before it has its name, so that nobody finds it free.
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.rename(lock.name, made / _WRITING)
            write(made)
            for file in made.rglob("*"):
                if file.is_file():
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())
            (made / _WRITING).unlink()
            try:
                made.rename(target)
            except OSError:
                # Somebody else's is as good. Anything else is an error.
                if not target.is_dir():
                    raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Whether who wrote there is dead: it holds no lock any more. One without a lock is given a day."""
    try:
        with (folder / _WRITING).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return time.time() - folder.stat().st_mtime > _ABANDONED_S
