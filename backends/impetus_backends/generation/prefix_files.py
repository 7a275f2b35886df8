"""Beginnings of prompts on disk, so that what was read once need not be read again after a restart.

A file is what mlx-lm's `save_prompt_cache` writes, safetensors, named by a digest of its bytes; the tokens that it
stands for are in its metadata. Each model has a folder of its own by its fingerprint. What is not whole, or not of this
model, is removed and never used. The folder holds what prompts said: only its user can open it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelError
from .quantization.keys_and_values import PackedCache

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TOKENS, _TRIMMABLE = "impetus_tokens", "impetus_trimmable"
_IN_HEADER = "0."
"""mlx-lm writes a file's own metadata first, and theirs after it."""
_UNFINISHED = "unfinished-"
_FORGOTTEN_S = 3600.0
"""Nobody writes one file for so long."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredPrefix:
    """A file, and the tokens (int64) that it stands for."""

    file: Path
    tokens: np.ndarray
    trimmable: bool


class PrefixFiles:
    """The files of one model. All models in `root` together take at most `limit_bytes`: those unused for longest go."""

    def __init__(self, root: Path, fingerprint: str, limit_bytes: int, make_cache: Callable[[], list[Any]]) -> None:
        """Reads what there is. Raises `ModelError` where there can be no such folder."""
        self._root, self._folder = root, root / fingerprint
        self._limit_bytes = limit_bytes
        self._make_cache = make_cache
        self._written = 0
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for unfinished in self._folder.glob(f"{_UNFINISHED}*"):
                if time.time() - unfinished.stat().st_mtime > _FORGOTTEN_S:
                    unfinished.unlink()
            files = list(self._folder.glob("*.safetensors"))
        except OSError as error:
            raise ModelError(f"--prefix-cache-dir: {root} cannot be used: {error.strerror}") from error
        self.found: list[StoredPrefix] = []
        """Those that were there, the least recently used one first."""
        for file in sorted(files, key=_used_at):
            if file.name.startswith(_UNFINISHED):
                continue
            if (header := _header(file)) is None:
                _removed(file)
            else:
                self.found.append(StoredPrefix(file, *header))

    def write(self, tokens: np.ndarray, cache: list[Any]) -> StoredPrefix | None:
        """Keeps the cache of these tokens, which stays its caller's; None where that cannot be."""
        from mlx_lm.models.cache import save_prompt_cache

        if sum(layer.nbytes for layer in cache) > self._limit_bytes:
            return None
        trimmable = all(layer.is_trimmable() for layer in cache)
        self._written += 1
        unfinished = self._folder / f"{_UNFINISHED}{os.getpid()}-{self._written}.safetensors"
        stated = {
            _TOKENS: base64.b64encode(tokens.astype("<i4").tobytes()).decode(),
            _TRIMMABLE: "yes" if trimmable else "no",
        }
        try:
            save_prompt_cache(str(unfinished), [_as_saved(layer) for layer in cache], stated)
            unfinished.chmod(0o600)
            file = self._folder / f"{_digest(unfinished)}.safetensors"
            unfinished.replace(file)
            self._make_room()
        except Exception:  # noqa: BLE001 - a disk that is full, a folder that is gone, a cache of another kind
            _removed(unfinished)
            return None
        self.found.append(StoredPrefix(file, tokens, trimmable))
        return self.found[-1]

    def read(self, stored: StoredPrefix) -> list[Any] | None:
        """The cache in a file; None, and no such file any more, where it is not the one that was written."""
        import mlx.core as mx
        from mlx_lm.models.cache import load_prompt_cache

        try:
            if _digest(stored.file) != stored.file.stem:
                raise ValueError("other bytes than were written")
            layers = [
                _as_made(loaded, made)
                for loaded, made in zip(load_prompt_cache(str(stored.file)), self._make_cache(), strict=True)
            ]
            mx.eval([layer.state for layer in layers])
            os.utime(stored.file)
        except Exception:  # noqa: BLE001 - whatever is in it, or that it is gone
            _removed(stored.file)
            return None
        return layers

    def forget(self) -> None:
        """Removes all files of this model."""
        for file in self._folder.glob("*.safetensors"):
            _removed(file)
        self.found.clear()

    def _make_room(self) -> None:
        held: list[tuple[float, int, Path]] = []
        for file in self._root.glob("*/*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room as well
                about = file.stat()
                held.append((about.st_mtime, about.st_size, file))
        total = sum(size for _, size, _ in held)
        for _, size, file in sorted(held):
            if total <= self._limit_bytes:
                return
            _removed(file)
            total -= size


def _header(file: Path) -> tuple[np.ndarray, bool] | None:
    from safetensors import safe_open

    try:
        with safe_open(file, "numpy") as opened:
            stated = opened.metadata()
        tokens = np.frombuffer(base64.b64decode(stated[_IN_HEADER + _TOKENS], validate=True), "<i4")
        return tokens.astype(np.int64), stated[_IN_HEADER + _TRIMMABLE] == "yes"
    except Exception:  # noqa: BLE001 - cut short, or no such file at all
        return None


def _used_at(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _removed(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink()


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _as_saved(layer: Any) -> Any:
    """As mlx-lm can read it again: it knows its own caches alone."""
    from mlx_lm.models.cache import CacheList

    return CacheList(*layer.caches) if isinstance(layer, PackedCache) else layer


def _as_made(loaded: Any, made: Any) -> Any:
    """What was read, as the kind of cache that this model has there. Raises `ValueError` where it is of another."""
    if isinstance(made, PackedCache):
        return PackedCache(made.bits, loaded.caches)
    if type(loaded) is not type(made):
        raise ValueError(f"{type(loaded).__name__}, and not {type(made).__name__}")
    return loaded
