"""Long requests turned into tokens by a thread beside the one that drives the engine, so that what decodes goes on.

A tokenizer takes about a second for a million characters, and lets other threads run meanwhile. It must not be used by
two at a time: the thread has a copy.
"""

from __future__ import annotations

import concurrent.futures
import copy
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...protocol import GenerationWork
    from .prompts import Prompts

LONG_CHARACTERS = 20_000
"""Read in about 20 ms: what is shorter is read at once."""


class LongPrompts:
    """`open_prompts`: reads with the tokenizer that it is given, mlx-lm's `TokenizerWrapper`."""

    def __init__(self, tokenizer: Any, open_prompts: Callable[[Any], Prompts]) -> None:
        self._tokenizer = tokenizer
        self._open_prompts = open_prompts
        self._prompts: Prompts | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._reading: deque[tuple[GenerationWork, float, Future[list[int]]]] = deque()
        """In the order in which they came, which is that in which they are read."""

    def __len__(self) -> int:
        return len(self._reading)

    @staticmethod
    def is_long(work: GenerationWork) -> bool:
        texts = [work.prompt] if work.prompt is not None else [each["content"] for each in work.messages or ()]
        return sum(map(len, texts)) > LONG_CHARACTERS

    def put(self, work: GenerationWork, now: float) -> None:
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="long-prompts")
        self._reading.append((work, now, self._pool.submit(self._read, work)))

    def take(self) -> tuple[GenerationWork, float, Future[list[int]]] | None:
        """The first that has been read, when it was put here, and its tokens, or what they raise; None as long as there
        is none."""
        return self._reading.popleft() if self._reading and self._reading[0][2].done() else None

    def wait(self, timeout_s: float) -> None:
        """Returns when the first has been read, or after this long."""
        if self._reading:
            concurrent.futures.wait([self._reading[0][2]], timeout_s)

    def cancel(self, work_id: int) -> GenerationWork | None:
        """Forgets a request; None where it is not here."""
        found = next((each for each in self._reading if each[0].id == work_id), None)
        if found is None:
            return None
        self._reading.remove(found)
        found[2].cancel()
        return found[0]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._reading.clear()

    def _read(self, work: GenerationWork) -> list[int]:
        if self._prompts is None:
            own = copy.copy(self._tokenizer)
            own._tokenizer = copy.deepcopy(self._tokenizer._tokenizer)
            self._prompts = self._open_prompts(own)
        return self._prompts.tokens(work)
