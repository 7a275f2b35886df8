"""The rows whose prompts are read: all get a token in a step.

mlx-lm's `GenerationBatch` runs the model and draws; who joins it, who leaves it, and where their keys and values lie is
decided here (`places`). A step runs the model before it tells what the run before has made, so that the device has
something to do meanwhile. Where newcomers join, whose prompts are read but for the last token, it does not. They are
run on that together with all others, and the step tells both what was there and what this run makes: where weights are
what a step waits for, a run of their own would cost as much as one of all. Those whose text is read while it is made
have one all the same: their first word does not wait for the others, who make room for all that they have read.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from .places import bound_places, closed_ranks, in_places
from .row import Row, Token
from .sampling import BatchSampler

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from .lookahead import Lookahead


class DecodingRows:
    """`solo`: there is never more than one row, whose cache need not know how to be in a batch. `lookahead`: what
    drafts for a row that has nobody beside it."""

    def __init__(self, model: Any, *, solo: bool, lookahead: Lookahead | None) -> None:
        from mlx_lm.generate import GenerationBatch

        self.sampler = BatchSampler()
        self._solo = solo
        self._lookahead = lookahead
        self._rows: dict[int, Row] = {}
        self._started: list[Any] = []
        """Those that have not joined yet and not run: a `GenerationBatch` for each group that was read together."""
        self._ahead: list[Any] = []
        """Those that have not joined yet, and had a run of their own."""
        self._all_told = False
        """Whether the tokens that were drawn last are told, so that the model has to run before there are others."""
        self._bounds = 0, 0
        self._batch: Any = GenerationBatch.empty(model, self.sampler)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> Collection[Row]:
        return self._rows.values()

    def start(self, rows: Sequence[Row], read: Any) -> None:
        """`read`: mlx-lm's `PromptProcessingBatch` of these rows, which has read all but their prompts' last tokens."""
        self._rows |= {row.id: row for row in rows}
        last = [int(row.prompt[-1]) for row in rows]
        if any(row.streamed for row in rows):
            self.sampler.use([row.draws for row in rows])
            self._ahead.append(read.generate([[token] for token in last]))
        else:
            self._started.append(_to_be_run(self._batch, read, last))

    def resume(self, rows: int, longest: int) -> None:
        """Begins a step: the model runs if there is nothing to tell. `rows`: how many there are, with those whose
        prompts are being read; `longest`: the most tokens that one of them may come to."""
        if rows < self._bounds[0] or longest < self._bounds[1]:
            bound_places(self._batch.prompt_cache, rows, longest)
        self._bounds = rows, longest
        if self._all_told and self._rows:
            self._run()
        self._all_told = False

    def step(self, *, alone: bool) -> list[Token]:
        """Ends it: a token for every row, two where others join; perhaps several, for one that is alone."""
        if not self._rows:
            return []
        if self._started or self._ahead:
            tokens = self._told()
            if self._started:
                self._run()
                tokens += self._told()
            return tokens
        return self._ended((self._step_ahead() if alone else []) or self._run())

    def _told(self) -> list[Token]:
        """What was drawn last, without another run."""
        self._all_told = True
        batches = [batch for batch in (self._batch, *self._ahead) if batch.uids]
        tokens = [self._tokens(batch, batch._next_tokens.tolist(), batch._next_logprobs) for batch in batches]
        return self._ended(list(chain.from_iterable(tokens)))

    def _ended(self, tokens: list[Token]) -> list[Token]:
        """The same; rows of which they are the last are gone."""
        self.remove([token.id for token in tokens if token.finish_reason is not None])
        return tokens

    def _run(self) -> list[Token]:
        """Runs the model, for those who have just been read as well; returns what was drawn last and is not told."""
        import mlx.core as mx

        self._join()
        self.sampler.use([self._rows[row_id].draws for row_id in self._batch.uids])
        # Rows that came or went left these as part of the next step's graph, and so not there before its end.
        start: Any = mx.async_eval
        start(self._batch._next_tokens, self._batch._next_logprobs)
        drawn, logprobs = self._batch._step()
        return [] if self._all_told else self._tokens(self._batch, drawn, logprobs)

    def _join(self) -> None:
        for batch in (*self._ahead, *self._started):
            if not self._solo and not self._batch.uids:
                batch.prompt_cache = in_places(batch.prompt_cache)
            self._batch.extend(batch)
        self._ahead.clear()
        self._started.clear()

    def remove(self, ids: Collection[int]) -> None:
        gone = self._rows.keys() & set(ids)
        if not gone:
            return
        for row_id in gone:
            del self._rows[row_id]
            if self._lookahead is not None:
                self._lookahead.forget(row_id)
        for batch in (*self._ahead, *self._started, self._batch):
            keep = [at for at, row_id in enumerate(batch.uids) if row_id not in gone]
            if len(keep) < len(batch.uids):
                batch.filter(closed_ranks(keep))
        self._ahead = [batch for batch in self._ahead if batch.uids]
        self._started = [batch for batch in self._started if batch.uids]

    def _tokens(self, batch: Any, drawn: Sequence[int], logprobs: Sequence[Any]) -> list[Token]:
        """What was drawn for a batch's rows, and is counted here."""
        return [Token(batch.uids[at], token, logprobs[at], _count(batch, at, token)) for at, token in enumerate(drawn)]

    def _step_ahead(self) -> list[Token]:
        """Several tokens of the only row; none where this step is to be as any other."""
        ((row_id, row),) = self._rows.items()
        if self._lookahead is None or not row.draws.sampling.greedy or row.processors:
            return []  # only what is certain to be drawn can be checked
        drawn = self._lookahead.step(self._batch)
        if drawn is None:
            return []
        tokens: list[Token] = []
        for token, logprobs in drawn:
            self._batch.tokens[0].append(token)
            tokens.append(Token(row_id, token, logprobs, _count(self._batch, 0, token)))
            if tokens[-1].finish_reason is not None:
                break
        return tokens


def _to_be_run(like: Any, read: Any, last: list[int]) -> Any:
    """A `GenerationBatch` of what was read, to extend another by, whose rows are to be run on their prompts' `last`
    tokens. mlx-lm makes none that has not run."""
    import mlx.core as mx
    from mlx_lm.generate import GenerationBatch
    from mlx_lm.models.cache import TokenBuffer

    batch = GenerationBatch.empty(like.model, like.fallback_sampler)
    for name in ("uids", "prompt_cache", "tokens", "samplers", "logits_processors", "max_tokens", "stop_sequences"):
        setattr(batch, name, getattr(read, name))
    batch._next_tokens = mx.array(last)
    batch._next_logprobs = [mx.array(0.0)] * len(last)
    batch._token_context = [TokenBuffer(tokens) for tokens in batch.tokens]
    batch._num_tokens = [0] * len(last)
    batch._matchers = [stops.matcher() for stops in batch.stop_sequences]
    return batch


def _count(batch: Any, at: int, token: int) -> str | None:
    """One more token of a row; why it was the last one, as mlx-lm's `GenerationBatch.next` says it."""
    batch._num_tokens[at] += 1
    if batch._matchers[at].advance(token):
        return "stop"
    return "length" if batch._num_tokens[at] >= batch.max_tokens[at] else None
