"""The running batch: rows whose prompts are being read, and rows that decode. One step serves both.

It drives the two halves of mlx-lm's `BatchGenerator` (`PromptProcessingBatch`, `GenerationBatch`) by a plan of its own.
In each step at most `prefill_tokens` of prompts are read, padding included, and then every row that decodes gets one
token: so a prompt, however long, keeps the others waiting for one such piece at a time, and a row whose prompt has been
read gets its first token in the same step. Prompts that fit into a piece are read together. A longer one is read alone,
piece by piece, in turn with the short ones; of several long ones the first to come is finished before the next, which
may find there what both begin with.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .lookahead import Lookahead
from .prefixes import LEAST_TOKENS
from .sampling import BatchSampler, Draws
from .token import Token

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    import numpy as np

    from .prefixes import PrefixCache

_READ_TOGETHER = 16
"""Prompts read in one piece, at most."""
_CLEAR_EVERY_STEPS = 512


@dataclass(slots=True, eq=False)
class Row:
    """One prompt to read and then to go on from."""

    id: int
    prompt: np.ndarray
    """int64 (tokens,)."""
    max_tokens: int
    draws: Draws
    processors: tuple[Any, ...] = ()
    """mlx-lm's logits processors."""
    stop_tokens: tuple[int, ...] = ()
    """Those that end it besides the model's own."""
    alone: bool = False
    """Whether its prompt is read with no other."""
    cached_tokens: int = 0
    """How many tokens of its prompt it was spared, once it is read."""


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
        import mlx.core as mx
        from mlx_lm.generate import GenerationBatch, StopSequences

        self._model = model
        self._end_tokens = frozenset(end_tokens)
        self._stops = StopSequences([[token] for token in sorted(self._end_tokens)])
        self._prefill_tokens = prefill_tokens
        self._prefixes = prefixes
        self._solo = solo
        self._read_apart = read_apart
        self._lookahead = Lookahead(model, lookup_tokens) if lookup_tokens else None
        self._stream = mx.new_stream(mx.default_device())
        self._sampler = BatchSampler()
        self._waiting: deque[Row] = deque()
        self._long: _Reading | None = None
        """The long prompt that is being read piece by piece."""
        self._long_is_next = False
        self._rows: dict[int, Row] = {}
        """Those that decode."""
        self._broken: dict[int, tuple[Any, int]] = {}
        """Where it stands whether the token that a row gets next is drawn from numbers: an array, and a place in it."""
        self._decoding: Any = GenerationBatch.empty(model, self._sampler)
        self._steps = 0

    def __len__(self) -> int:
        """Rows in the batch, whatever they are at."""
        return len(self._waiting) + (self._long is not None) + len(self._rows)

    def add(self, row: Row) -> None:
        self._waiting.append(row)

    def remove(self, ids: Collection[int]) -> None:
        """Takes rows out, wherever they are."""
        self._waiting = deque(row for row in self._waiting if row.id not in ids)
        if self._long is not None and self._long.rows[0].id in ids:
            self._long = None
        if gone := self._rows.keys() & set(ids):
            for row_id in gone:
                self._forget(row_id)
            self._decoding.filter([at for at, row_id in enumerate(self._decoding.uids) if row_id not in gone])

    def step(self) -> list[Token]:
        """Reads a piece of what is to be read, and gives every row that decodes its next token; to one that is alone it
        may give several.

        Raises `ReadingError`; after any other exception nothing in the batch can go on.
        """
        import mlx.core as mx

        with mx.stream(self._stream):
            self._read()
            if not self._rows:
                return []
            if ahead := self._step_ahead():
                return ahead
            rows = list(self._decoding.uids)
            self._sampler.use([self._rows[row_id].draws for row_id in rows])
            due = {row_id: self._broken[row_id] for row_id in rows}
            # Rows that came or went left these as part of the next step's graph, and so not there before its end.
            start: Any = mx.async_eval
            start(self._decoding._next_tokens, self._decoding._next_logprobs, [each for each, _ in due.values()])
            responses = self._decoding.next()
            self._broken = self._drawn(rows)
        self._steps += 1
        if self._steps % _CLEAR_EVERY_STEPS == 0:
            mx.clear_cache()
        for response in responses:
            if response.finish_reason is not None:
                self._forget(response.uid)
        broken = {id(each): each.tolist() for each, _ in due.values()}
        return [
            Token(
                each.uid, each.token, each.logprobs, each.finish_reason, broken[id(due[each.uid][0])][due[each.uid][1]]
            )
            for each in responses
        ]

    def _drawn(self, rows: list[int]) -> dict[int, tuple[Any, int]]:
        """What the sampler says of the tokens that it has just drawn for these."""
        return {row_id: (self._sampler.broken, at) for at, row_id in enumerate(rows)}

    def _forget(self, row_id: int) -> None:
        del self._rows[row_id]
        if self._lookahead is not None:
            self._lookahead.forget(row_id)

    def _step_ahead(self) -> list[Token]:
        """Several tokens of a row that is alone; none where this step is to be as any other."""
        if self._lookahead is None or len(self) != 1:
            return []
        (row,) = self._rows.values()
        if not row.draws.sampling.greedy or row.processors:
            return []  # only what is certain to be drawn can be checked
        made = self._lookahead.step(self._decoding, self._broken[row.id])
        if made is None:
            return []
        self._broken[row.id] = made.broken_next
        if made.tokens[-1].finish_reason is not None:
            self._forget(row.id)
        return list(made.tokens)

    def close(self) -> None:
        """Drops all rows and gives their memory back."""
        import mlx.core as mx

        self._waiting.clear()
        self._rows.clear()
        self._broken.clear()
        self._long = self._decoding = None
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
            samplers=[self._sampler] * len(rows),
            fallback_sampler=self._sampler,
            logits_processors=[list(row.processors) for row in rows],
            stop_sequences=[self._stops_of(row) for row in rows],
            max_tokens=[row.max_tokens for row in rows],
        )
        if self._solo:
            batch.prompt_cache = _kept_apart(caches[0])
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
        self._sampler.use([row.draws for row in reading.rows])
        started = reading.batch.generate([row.prompt[-1:].tolist() for row in reading.rows])
        self._broken |= self._drawn([row.id for row in reading.rows])
        self._decoding.extend(started)
        self._rows |= {row.id: row for row in reading.rows}
        return True

    def _keep(self, reading: _Reading) -> None:
        """Remembers what was read, where that was much: a prompt that is known but for a little adds nothing."""
        for at, row in enumerate(reading.rows):
            if self._unread(row) >= LEAST_TOKENS:
                self._prefixes.add(row.prompt[:-1], reading.batch.extract_cache(at))


def _kept_apart(cache: list[Any]) -> list[Any]:
    """A cache that mlx-lm can carry through its batches of one, though its layers do not know how to be in any."""
    for layer in cache:
        layer.extract = lambda row: None  # all: a list of caches has one that fails where its caches have none
    return cache


@contextlib.contextmanager
def _blaming(rows: list[Row]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the device, the model or mlx-lm: the engine finds out whose fault it was
        raise ReadingError(rows, error) from error
