"""The running batch: rows whose prompts are being read, and rows that decode. One step serves both.

It drives the two halves of mlx-lm's `BatchGenerator` (`PromptProcessingBatch`, `GenerationBatch`) by a plan of its own.
In each step at most `prefill_tokens` of prompts are read, padding included, and every row that decodes gets one token:
so a prompt, however long, keeps the others waiting for one such piece at a time, and a row whose prompt has been read
gets its first token in the same step. Prompts that fit into a piece are read together. A longer one is read alone,
piece by piece, in turn with the short ones; of several long ones the first to come is finished before the next, which
may find there what both begin with.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..prefixes import LEAST_TOKENS
from .decoding import DecodingRows
from .lookahead import Lookahead

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from ..prefixes import PrefixCache
    from .row import Row, Token

_READ_TOGETHER = 16
"""Prompts read in one piece, at most."""
_CLEAR_EVERY_STEPS = 512


class ReadingError(Exception):
    """Some prompts could not be read. They are out of the batch; the rows that decode have lost nothing."""

    def __init__(self, rows: list[Row], cause: Exception) -> None:
        super().__init__(str(cause))
        self.rows = rows


@dataclass(slots=True, eq=False)
class _Reading:
    """Prompts that are read together, and what is left of each but for its last token."""

    rows: list[Row]
    left: list[list[int]]
    batch: Any = field(repr=False)
    """Its keys and values; mlx-lm's `PromptProcessingBatch`."""


class RunningBatch:
    """Every method is called by the one thread that made it."""

    def __init__(
        self,
        model: Any,
        end_tokens: Iterable[int],
        *,
        prefill_tokens: int,
        prefixes: PrefixCache,
        solo: bool = False,
        read_apart: bool = False,
        lookup_tokens: int = 0,
    ) -> None:
        """`solo`: for a model that does not batch. There is never more than one row, and nothing is merged.
        `read_apart`: for one that must not be padded while it reads. Each prompt is read by itself, though several in
        one step. `lookup_tokens`: the most that are drafted of what a row says that has nobody beside it (`lookup`);
        0: nothing."""
        from mlx_lm.generate import StopSequences, generation_stream

        self._model = model
        self._end_tokens = frozenset(end_tokens)
        self._stops = StopSequences([[token] for token in sorted(self._end_tokens)])
        self._prefill_tokens = prefill_tokens
        self._prefixes = prefixes
        self._solo = solo
        self._read_apart = read_apart
        # Compiled functions are kept for each stream, and looked for among those of all streams that there were.
        self._stream = generation_stream
        self._waiting: deque[Row] = deque()
        self._long: _Reading | None = None
        """The long prompt that is being read piece by piece."""
        self._long_is_next = False
        lookahead = Lookahead(model, lookup_tokens) if lookup_tokens else None
        self._decoding = DecodingRows(model, solo=solo, lookahead=lookahead)
        self._steps = 0

    def __len__(self) -> int:
        """Rows in the batch, whatever they are at."""
        return len(self._waiting) + (self._long is not None) + len(self._decoding)

    def add(self, row: Row) -> None:
        self._waiting.append(row)

    def remove(self, ids: Collection[int]) -> None:
        """Takes rows out, wherever they are."""
        self._waiting = deque(row for row in self._waiting if row.id not in ids)
        if self._long is not None and self._long.rows[0].id in ids:
            self._long = None
        self._decoding.remove(ids)

    def step(self) -> list[Token]:
        """Reads a piece of what is to be read, and gives every row that decodes a token; to one that is alone it may
        give several.

        Raises `ReadingError`; after any other exception nothing in the batch can go on.
        """
        import mlx.core as mx

        self._steps += 1
        if self._steps % _CLEAR_EVERY_STEPS == 0:
            mx.clear_cache()
        with mx.stream(self._stream):
            rows = [*self._waiting, *(self._long.rows if self._long is not None else ()), *self._decoding.rows]
            self._decoding.resume(len(rows), max((each.longest_tokens for each in rows), default=0))
            self._read()
            return self._decoding.step(alone=len(rows) == 1)

    def close(self) -> None:
        """Drops all rows and gives their memory back."""
        import mlx.core as mx

        self._waiting.clear()
        self._long = None
        self._decoding = DecodingRows(self._model, solo=self._solo, lookahead=None)
        mx.clear_cache()

    # -- reading -----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Reads one piece: of short prompts together, or of a long one, in turn where there are both."""
        short = self._short_ones()
        long = self._long.rows[0] if self._long is not None else self._first_long_one()
        if short and not (self._long_is_next and long is not None):
            self._long_is_next = True
            for group in [[row] for row in short] if self._read_apart else [short]:
                for row in group:
                    self._waiting.remove(row)
                with _blaming(group):
                    opened = self._open(group)
                    while not self._read_piece(opened):
                        pass  # more was to be read than was known before: a remembered beginning was not to be had
        elif long is not None:
            self._long_is_next = False
            reading, self._long = self._long, None
            if reading is None:
                self._waiting.remove(long)
            with _blaming([long]):
                reading = reading or self._open([long])
                if not self._read_piece(reading):
                    self._long = reading

    def _first_long_one(self) -> Row | None:
        return next((row for row in self._waiting if self._unread(row) > self._prefill_tokens), None)

    def _short_ones(self) -> list[Row]:
        """Waiting rows, the first to come first, whose prompts fit into one piece together."""
        chosen: list[Row] = []
        longest = 0
        for row in self._waiting:
            length = self._unread(row)
            if length > self._prefill_tokens:
                continue
            longest = max(longest, length)
            if chosen and (
                row.alone
                or chosen[0].alone
                or len(chosen) == _READ_TOGETHER
                or longest * (len(chosen) + 1) > self._prefill_tokens
                or (length == 0) != (self._unread(chosen[0]) == 0)  # a row of padding alone attends to nothing: NaN
            ):
                break
            chosen.append(row)
        return chosen

    def _unread(self, row: Row) -> int:
        """How many tokens of its prompt are to be read before its last."""
        return len(row.prompt) - 1 - self._prefixes.known(row.prompt)

    def _open(self, rows: list[Row]) -> _Reading:
        from mlx_lm.generate import PromptProcessingBatch
        from mlx_lm.models.cache import make_prompt_cache

        caches = []
        for row in rows:
            row.cached_tokens, cache = self._prefixes.take(row.prompt)
            caches.append(cache or make_prompt_cache(self._model))
        batch = PromptProcessingBatch(
            model=self._model,
            uids=[row.id for row in rows],
            caches=[] if self._solo else caches,
            tokens=[row.prompt[: row.cached_tokens].tolist() for row in rows],
            prefill_step_size=self._prefill_tokens,
            samplers=[self._decoding.sampler] * len(rows),
            fallback_sampler=self._decoding.sampler,
            logits_processors=[list(row.processors) for row in rows],
            stop_sequences=[self._stops_of(row) for row in rows],
            max_tokens=[row.max_tokens for row in rows],
        )
        if self._solo:
            batch.prompt_cache = caches[0]
        return _Reading(rows, [row.prompt[row.cached_tokens : -1].tolist() for row in rows], batch)

    def _stops_of(self, row: Row) -> Any:
        from mlx_lm.generate import StopSequences

        if not row.stop_tokens:
            return self._stops
        return StopSequences([[token] for token in sorted({*self._end_tokens, *row.stop_tokens})])

    def _read_piece(self, reading: _Reading) -> bool:
        """Reads what a step may; says whether its rows decode from now on."""
        if any(reading.left):
            reading.batch.prompt([left[: self._prefill_tokens] for left in reading.left])
            reading.left = [left[self._prefill_tokens :] for left in reading.left]
            if any(reading.left):
                return False
            if not self._solo:
                self._keep(reading)
        self._decoding.start(reading.rows, reading.batch)
        return True

    def _keep(self, reading: _Reading) -> None:
        """Remembers what was read, where that was much: a prompt that is known but for a little adds nothing."""
        for at, row in enumerate(reading.rows):
            if self._unread(row) >= LEAST_TOKENS:
                self._prefixes.add(row.prompt[:-1], reading.batch.extract_cache(at))


@contextlib.contextmanager
def _blaming(rows: list[Row]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the device, the model or mlx-lm: the engine finds out whose fault it was
        raise ReadingError(rows, error) from error
