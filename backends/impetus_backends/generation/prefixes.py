"""What was read of earlier prompts, kept for later ones that begin alike: a least-recently-used cache of KV caches.

mlx-lm has one as well (`LRUPromptCache`); there a look-up costs the square of the longest prompt kept, a shared first
token is enough for it to copy a whole cache, and being used does not keep an entry.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST_TOKENS = 128
"""Shorter beginnings cost more to keep and to copy than to read again."""


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    tokens: np.ndarray
    cache: list[Any]
    nbytes: int
    trimmable: bool

    def serves(self, tokens: np.ndarray) -> int:
        """How many of these tokens, from the first, it spares a reader."""
        length = min(len(tokens), len(self.tokens))
        differ = np.flatnonzero(self.tokens[:length] != tokens[:length])
        common = int(differ[0]) if len(differ) else length
        # A recurrent state, or a window that has moved on, stands for its whole prompt or for nothing.
        return common if self.trimmable or common == len(self.tokens) else 0


class PrefixCache:
    """Holds at most `limit_bytes` of caches, each with the tokens that made it."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: list[_Entry] = []
        """The least recently used one first."""
        self.nbytes = 0

    def known(self, prompt: np.ndarray) -> int:
        """How many tokens of this prompt, int64, `take` would spare a reader."""
        return self._nearest(prompt)[0]

    def take(self, prompt: np.ndarray) -> tuple[int, list[Any] | None]:
        """The length in tokens of the longest known beginning of a prompt, and its cache; (0, None) for none.

        The prompt's last token is never part of it: the model has to read something. The cache is the caller's own.
        """
        length, entry = self._nearest(prompt)
        if entry is None:
            return 0, None
        self._entries.remove(entry)
        self._entries.append(entry)
        cache = copy.deepcopy(entry.cache)
        if length < len(entry.tokens):
            for layer in cache:
                layer.trim(len(entry.tokens) - length)
        return length, cache

    def _nearest(self, prompt: np.ndarray) -> tuple[int, _Entry | None]:
        if len(prompt) > LEAST_TOKENS:
            found = [(entry.serves(prompt[:-1]), entry) for entry in self._entries]
            length, entry = max(found, key=lambda each: each[0], default=(0, None))
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
        self._entries.append(_Entry(tokens, cache, nbytes, trimmable))
        self.nbytes += nbytes
        self.resize(self._limit_bytes)

    def resize(self, limit_bytes: int) -> None:
        """Changes the limit; the least recently used go first."""
        self._limit_bytes = limit_bytes
        while self.nbytes > self._limit_bytes:
            self.nbytes -= self._entries.pop(0).nbytes

    def clear(self) -> None:
        self._entries.clear()
        self.nbytes = 0
