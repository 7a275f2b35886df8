"""The generation engine: admits requests, decodes them together, and keeps one's failure from the others.

It drives mlx-lm's `BatchGenerator`, one `next()` a step. Requests beyond `max_concurrent` wait here, not in mlx-lm,
so that urgent ones can pass and any can be cancelled.

`next()` cannot tell whose fault an exception is, and leaves its batch half advanced. So after one the batch is thrown
away and its requests run again from their prompts, one at a time: one that raises alone as well is rejected, the
others finish as if nothing had been. A request's own sampler never raises into the batch at all (see `sampling`).
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from ..protocol import EngineInfo, Event, Generated, GenerationWork, Rejected, Work
from .batching import batching_fault
from .loader import load
from .prompts import prompt_tokens
from .sampling import OwnSampler, Samplers
from .text import TextBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .loader import LoadedModel
    from .sampling import Sampler

PREFILL_TOKENS = 512
"""Prompt tokens of one row read in one step. While they are read the others wait, so this bounds their pause."""
PREFILL_ROWS = 8
"""Prompts read together, at most."""


def open_generation_engine(
    folder: Path, *, model_name: str, aliases: tuple[str, ...], max_concurrent: int
) -> GenerationEngine:
    """Loads the model in `folder`, checks that it batches correctly, and returns its engine.

    A model that answers differently in a batch is run one request at a time, and `info.reasons` says so. The calling
    thread must be the one that drives the engine. Raises `BackendUnavailableError` and `ModelError`.
    """
    loaded = load(folder)
    fault = batching_fault(loaded) if max_concurrent > 1 else None
    info = EngineInfo(
        kind="generation",
        backend="mlx",
        device=loaded.device,
        model=model_name,
        model_aliases=aliases,
        fingerprint=loaded.fingerprint,
        precision=loaded.precision,
        max_tokens=loaded.context_tokens,
        note=loaded.note,
        reasons=(fault,) if fault else (),
    )
    return GenerationEngine(loaded, info, max_concurrent=1 if fault else max_concurrent)


@dataclass(slots=True, eq=False)
class _Row:
    """One request on its way. What a run fills in is cleared when the request has to run again."""

    work: GenerationWork
    tokens: list[int]
    admitted_at: float
    sampler: Sampler = field(init=False, repr=False)
    text: TextBuilder = field(init=False, repr=False)
    completion_tokens: int = 0
    first_token_at: float = 0.0


class GenerationEngine:
    """Implements `protocol.Engine` for `GenerationWork`. At most `max_concurrent` requests decode together.

    `completion_tokens` counts every token the model was run for: the end-of-text token that ended an answer, and the
    tokens of the stop string that did, though neither is in the text. Times count from `admit`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        info: EngineInfo,
        *,
        max_concurrent: int,
        samplers: Samplers | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_concurrent < 1:
            raise ValueError(f"max_concurrent is {max_concurrent}, and must be at least 1")
        self._loaded = loaded
        self._info = info
        self._max_concurrent = max_concurrent
        self._samplers = samplers or Samplers()
        self._clock = clock
        self._urgent: deque[_Row] = deque()
        self._waiting: deque[_Row] = deque()
        self._suspects: deque[_Row] = deque()
        """Requests that were decoding when `next()` raised: each runs alone before anything else does."""
        self._on_trial = False
        self._decoding: dict[int, _Row] = {}
        """By mlx-lm's uid."""
        self._events: list[Event] = []
        self._generator: Any = self._new_generator()

    @property
    def info(self) -> EngineInfo:
        return self._info

    def admit(self, work: Work) -> None:
        """Takes a request in; urgent ones start before all that are not. What is wrong with it comes from `step`."""
        if not isinstance(work, GenerationWork):
            self._reject(work.id, "this engine generates text and makes no embeddings")
            return
        try:
            tokens = prompt_tokens(self._loaded.tokenizer, work, self._loaded.context_tokens)
        except RequestError as error:
            self._reject(work.id, str(error))
            return
        (self._urgent if work.urgent else self._waiting).append(_Row(work, tokens, self._clock()))

    def cancel(self, work_id: int) -> None:
        """Forgets a request wherever it is; its place is free for the next step. An unknown id is no error."""
        self._events = [event for event in self._events if event.id != work_id]
        for queue in (self._urgent, self._waiting, self._suspects):
            for row in [row for row in queue if row.work.id == work_id]:
                queue.remove(row)
        for uid in [uid for uid, row in self._decoding.items() if row.work.id == work_id]:
            del self._decoding[uid]
            with self._isolated():
                self._generator.remove([uid])

    def pending(self) -> int:
        """Requests not done, and rejections that no `step` has handed over yet."""
        queued = len(self._urgent) + len(self._waiting) + len(self._suspects)
        return queued + len(self._decoding) + len(self._events)

    def step(self) -> list[Event]:
        """One decoding step of all that decode (and a piece of the prompts that have not begun)."""
        self._fill()
        if self._decoding:
            with self._isolated():
                self._take(self._generator.next()[1])
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Drops all work and gives the batch's memory back. The engine cannot be used afterwards."""
        import mlx.core as mx

        for queue in (self._urgent, self._waiting, self._suspects):
            queue.clear()
        self._decoding.clear()
        self._events.clear()
        if self._generator is not None:
            self._generator.close()
            self._generator = None
            mx.clear_cache()

    def _fill(self) -> None:
        """Starts waiting requests while there is room: suspects one at a time and first, then the urgent ones."""
        if self._on_trial and not self._decoding:
            self._on_trial = False
        while self._suspects and not self._decoding:
            self._on_trial = True
            self._start(self._suspects.popleft())
        if self._on_trial:
            return
        while (self._urgent or self._waiting) and len(self._decoding) < self._max_concurrent:
            self._start((self._urgent or self._waiting).popleft())

    def _start(self, row: _Row) -> None:
        work = row.work
        try:
            row.sampler = self._samplers.get(work.temperature, work.top_p, work.seed)
            row.text = TextBuilder(self._loaded.tokenizer.detokenizer, work.stop)
            row.completion_tokens = 0
            (uid,) = self._generator.insert([row.tokens], [work.max_tokens], samplers=[row.sampler])
        except Exception as error:  # noqa: BLE001  # nothing else has run: whatever it is, it is this request's
            self._reject(work.id, f"the request cannot be started: {error}")
        else:
            self._decoding[uid] = row

    def _take(self, responses: list[Any]) -> None:
        """Reads one step's tokens, and ends the requests that are done or at fault."""
        now = self._clock()
        ended: list[int] = []
        for uid, row in list(self._decoding.items()):
            if isinstance(row.sampler, OwnSampler) and row.sampler.error is not None:
                self._reject(row.work.id, f"choosing a token failed for this request: {row.sampler.error}")
                del self._decoding[uid]
                ended.append(uid)
        for response in responses:
            uid, reason = response.uid, response.finish_reason
            if (found := self._decoding.get(uid)) is None:
                continue
            try:
                done = self._advance(found, response.token, reason, now)
            except Exception as error:  # noqa: BLE001  # a detokenizer's trouble with this row's tokens
                self._reject(found.work.id, f"the model's tokens cannot be turned into text: {error}")
                done = True
            if done:
                del self._decoding[uid]
                if reason is None:
                    ended.append(uid)
        if ended:
            self._generator.remove(ended)

    def _advance(self, row: _Row, token: int, reason: str | None, now: float) -> bool:
        """Takes one token into a row; when that was its last, appends its result and returns True."""
        row.completion_tokens += 1
        if row.completion_tokens == 1:
            row.first_token_at = now
        if reason != "stop":  # else it is the end-of-text token, which is no text
            row.text.add(token)
        if reason is None and not row.text.stopped:
            return False
        text = row.text.finish()
        self._events.append(
            Generated(
                id=row.work.id,
                text=text,
                finish_reason="stop" if reason == "stop" or row.text.stopped else "length",
                prompt_tokens=len(row.tokens),
                completion_tokens=row.completion_tokens,
                first_token_s=row.first_token_at - row.admitted_at,
                total_s=now - row.admitted_at,
            )
        )
        return True

    @contextlib.contextmanager
    def _isolated(self) -> Iterator[None]:
        """Runs the batch generator; on an exception replaces it, and rejects or retries what it held."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # the device, the model or mlx-lm: the trial tells whose fault it is
            rows = list(self._decoding.values())
            self._decoding.clear()
            with contextlib.suppress(Exception):
                self._generator.close()  # it is broken already, and what it still says does not matter
            self._generator = self._new_generator()
            if self._on_trial:
                for row in rows:
                    self._reject(row.work.id, f"the model failed on this request, alone as well: {error}")
            else:
                self._suspects.extend(rows)

    def _new_generator(self) -> Any:
        from mlx_lm.generate import BatchGenerator

        return BatchGenerator(
            self._loaded.model,
            stop_tokens=[[token] for token in sorted(self._loaded.tokenizer.eos_token_ids)],
            completion_batch_size=self._max_concurrent,
            prefill_batch_size=min(PREFILL_ROWS, self._max_concurrent),
            prefill_step_size=PREFILL_TOKENS,
        )

    def _reject(self, work_id: int, message: str) -> None:
        self._events.append(Rejected(work_id, message))
