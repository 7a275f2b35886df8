"""What was read of earlier prompts, kept for later ones that begin alike: a least-recently-used cache of KV caches.

Where there are files, a beginning that a second prompt had is written to one, and so outlives its place in memory and
this process. What one prompt alone had never is: it may be gigabytes, and of no use.

mlx-lm has one as well (`LRUPromptCache`); there a look-up costs the square of the longest prompt kept, a shared first
token is enough for it to copy a whole cache, and being used does not keep an entry.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .prefix_files import PrefixFiles, StoredPrefix

LEAST_TOKENS = 128
"""Shorter beginnings cost more to keep and to copy than to read again."""


@dataclass(slots=True, eq=False)
class _Entry:
    tokens: np.ndarray
    trimmable: bool
    cache: list[Any] | None = None
    """None: it is in a file alone."""
    nbytes: int = 0
    """In memory."""
    stored: StoredPrefix | None = None

    def serves(self, tokens: np.ndarray) -> int:
        """How many of these tokens, from the first, it spares a reader."""
        length = min(len(tokens), len(self.tokens))
        differ = np.flatnonzero(self.tokens[:length] != tokens[:length])
        common = int(differ[0]) if len(differ) else length
        # A recurrent state, or a window that has moved on, stands for its whole prompt or for nothing.
        return common if self.trimmable or common == len(self.tokens) else 0


class PrefixCache:
    """Holds at most `limit_bytes` of caches in memory, each with the tokens that made it."""

    def __init__(self, limit_bytes: int, files: PrefixFiles | None = None) -> None:
        self._limit_bytes = limit_bytes
        self._files = files
        self._entries: list[_Entry] = []
        """The least recently used one first."""
        self.nbytes = 0
        self.clear()

    def known(self, prompt: np.ndarray) -> int:
        """How many tokens of this prompt, int64, `take` would spare a reader: fewer, where a file turns out broken."""
        return self._nearest(prompt)[0]

    def take(self, prompt: np.ndarray) -> tuple[int, list[Any] | None]:
        """The length in tokens of the longest known beginning of a prompt, and its cache; (0, None) for none.

        The prompt's last token is never part of it: the model has to read something. The cache is the caller's own.
        """
        length, entry = self._nearest(prompt)
        if entry is None:
            return 0, None
        self._entries.remove(entry)
        if (kept := self._kept(entry)) is None:
            return self.take(prompt)
        self._entries.append(entry)
        self.resize(self._limit_bytes)
        cache = copy.deepcopy(kept)
        if length < len(entry.tokens):
            for layer in cache:
                layer.trim(len(entry.tokens) - length)
        self._store(prompt[:length], cache)
        return length, cache

    def _kept(self, entry: _Entry) -> list[Any] | None:
        """Its cache, from its file if need be, and from then on in memory; None: the file is no good."""
        if entry.cache is None and entry.stored is not None and self._files is not None:
            entry.cache = self._files.read(entry.stored)
            if entry.cache is not None:
                entry.nbytes = sum(layer.nbytes for layer in entry.cache)
                self.nbytes += entry.nbytes
        return entry.cache

    def _store(self, tokens: np.ndarray, cache: list[Any]) -> None:
        """Writes what two prompts began with to a file, unless one has it but for a little."""
        spared = [entry.serves(tokens) for entry in self._entries if entry.stored is not None]
        if self._files is None or max(spared, default=0) > len(tokens) - LEAST_TOKENS:
            return
        if (stored := self._files.write(tokens, cache)) is not None:
            self._entries.append(_Entry(tokens, stored.trimmable, stored=stored))

    def _nearest(self, prompt: np.ndarray) -> tuple[int, _Entry | None]:
        if len(prompt) > LEAST_TOKENS:
            found = [(entry.serves(prompt[:-1]), entry) for entry in self._entries]
            found.sort(key=lambda each: (each[0], each[1].cache is not None))
            length, entry = found[-1] if found else (0, None)
            if length >= LEAST_TOKENS:
                return length, entry
        return 0, None

    def add(self, tokens: np.ndarray, cache: list[Any]) -> None:
        """Keeps the cache of these tokens, which nobody else may use from now on."""
        import mlx.core as mx

        mx.eval([layer.state for layer in cache])
        nbytes = sum(layer.nbytes for layer in cache)
        if nbytes > self._limit_bytes:
            return
        trimmable = all(layer.is_trimmable() for layer in cache)
        self._entries.append(_Entry(tokens, trimmable, cache, nbytes))
        self.nbytes += nbytes
        self.resize(self._limit_bytes)

    def resize(self, limit_bytes: int) -> None:
        """Changes the limit; the least recently used go first, out of memory."""
        self._limit_bytes = limit_bytes
        for entry in list(self._entries):
            if self.nbytes <= self._limit_bytes:
                return
            if entry.cache is not None:
                self.nbytes -= entry.nbytes
                entry.cache, entry.nbytes = None, 0
                if entry.stored is None:
                    self._entries.remove(entry)

    def clear(self) -> None:
        """Lets go of all that is in memory."""
        stored = self._files.found if self._files is not None else []
        self._entries = [_Entry(each.tokens, each.trimmable, stored=each) for each in stored]
        self.nbytes = 0

    def forget(self) -> None:
        """Drops everything, files as well: what was read may be wrong."""
        if self._files is not None:
            self._files.forget()
        self.clear()
