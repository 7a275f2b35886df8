"""The generation engine: admits requests, and says which of them run, in which batch.

A request starts when there is a place and, in the worst case of its length, memory for it; if there is none as long as
others run it is handed back. Each step is one step of the running batch (see `running`). Requests that are to be
deterministic run in a batch of their own, one at a time and in turn with the others: they share no step with anybody,
and no prompt that was read beside others, so nobody changes how the device rounds for them.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..protocol import (
    Answer,
    Deferred,
    EngineInfo,
    Event,
    Generated,
    GenerationWork,
    Rejected,
    Work,
)
from .admission import Admission
from .batch.running import RunningBatch
from .memory import Budget, RowCost, left_by_weights, measure_row_cost
from .prefix_files import PrefixFiles
from .prefixes import PrefixCache
from .requests import Request, RequestReader
from .runs import Runs
from .schemas.grammars import Grammars

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .models.loader import LoadedModel

PREFILL_TOKENS = 512
"""Prompt tokens read in one step, padding included. While they are read the others wait, so this bounds their pause."""

_ADMISSION_WAIT_S = 0.002
"""How long a step takes that has nothing to do but to wait for who is being admitted. Other models may have more to do.
"""
_PREFIX_SHARE = 4
"""Remembered prompts get a quarter of what the weights leave, at most."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine may take."""

    max_concurrent: int = 16
    measure_rows: bool = False
    """Whether that is found out by measurement, when the model has loaded (`rows`)."""
    memory_bytes: int | None = None
    """For weights, keys and values, and remembered prompts together; none: no limit."""
    prefix_cache_bytes: int = 512 * 2**20
    prefill_tokens: int = PREFILL_TOKENS
    context_tokens: int | None = None
    """What the model is to read at most, prompt and answer together, whatever its files say."""
    special_tokens: str = "control"
    """What they are in messages that do not say: `control` or `text`."""
    max_answer_tokens: int = 4096
    """Of an answer, where its request does not say."""
    prefix_cache_dir: Path | None = None
    """Where beginnings of prompts that several had are kept as files; none: nowhere."""
    prefix_cache_dir_bytes: int = 4 * 2**30
    kv_bits: int | None = None
    """In which keys and values are kept; none: as the model computes them."""
    lookup_tokens: int = 0
    """The most that are drafted of what a request says that runs alone (`lookup`); 0: nothing."""


class GenerationEngine:
    """Implements `protocol.Engine` for `GenerationWork`. At most `max_concurrent` requests run together.

    `completion_tokens` counts every token of the answers: the end-of-text token that ended one, and the tokens of the
    stop string that did, though neither is in the text; not those of an answer that was drawn anew, so that they are
    never more than were allowed. Times count from `admit`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        info: EngineInfo,
        limits: EngineLimits | None = None,
        *,
        read_apart: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits or EngineLimits()
        if self._limits.max_concurrent < 1:
            raise ValueError(f"max_concurrent is {self._limits.max_concurrent}, and must be at least 1")
        self._loaded = loaded
        self._info = info
        self._read_apart = read_apart
        self._clock = clock
        self._prefixes = PrefixCache(0, self._prefix_files())
        self._cost: RowCost | None = None
        """What a request takes in memory, measured when there first is a limit."""
        self._grammars = Grammars(loaded.tokenizer, loaded.vocabulary_size)
        self._reader = RequestReader(
            loaded,
            self._grammars,
            special_tokens=self._limits.special_tokens,
            max_answer_tokens=self._limits.max_answer_tokens,
        )
        self._admission = Admission(self._reader, self._grammars, lambda: self._alone, clock)
        self._waiting: deque[Request] = deque()
        self._to_be_lone: deque[Request] = deque()
        """Requests that are to be deterministic."""
        self._events: list[Event] = []
        solo, lookup_tokens = self._limits.max_concurrent == 1, self._limits.lookup_tokens
        self._together = self._runs(self._prefixes, solo=solo, lookup_tokens=lookup_tokens)
        self._lone = self._runs(PrefixCache(0), solo=True, lookup_tokens=0)
        self.resize(left_by_weights(loaded.model, self._limits.memory_bytes))
        self._alone = self._budget
        """What requests may take when no other model has a part of the memory."""

    @property
    def info(self) -> EngineInfo:
        return self._info

    def admit(self, work: Work) -> None:
        """Takes a request in. What is wrong with it comes from `step`."""
        if not isinstance(work, GenerationWork):
            self._reject(work.id, "this engine generates text and makes no embeddings")
            return
        self._admission.put(work)

    def _queue(self, request: Request) -> None:
        """Where each request is a batch of its own anyway, all are deterministic."""
        lone = request.work.deterministic and self._limits.max_concurrent > 1
        (self._to_be_lone if lone else self._waiting).append(request)

    def resize(self, memory_bytes: int | None) -> bool:
        """Changes what requests and remembered prompts may take together; says whether those that run take no more."""
        for_prefixes, for_requests = self._limits.prefix_cache_bytes, None
        if memory_bytes is not None:
            self._cost = self._cost or measure_row_cost(self._loaded.model)
            for_prefixes = min(for_prefixes, memory_bytes // _PREFIX_SHARE)
            for_requests = memory_bytes - for_prefixes
        self._budget = Budget(self._cost or RowCost(0, 0), for_requests)
        self._prefixes.resize(for_prefixes)
        return self._budget.allows(self._taken())

    def _taken(self) -> list[int]:
        """The most tokens that each of the requests may come to that run."""
        return [each.longest_tokens for runs in (self._together, self._lone) for each in runs.running]

    def cancel(self, work_id: int) -> None:
        """Ends a request wherever it is; its place is free for the next step. An unknown id is no error."""
        match self._admission.cancel(work_id):
            case GenerationWork():
                info = self._info
                nothing = (Answer("", "cancelled"),)
                self._events.append(Generated(work_id, nothing, 0, 0, 0.0, 0.0, info.model, info.fingerprint))
            case Request() as read:
                self._end_cancelled(read)
        for queue in (self._waiting, self._to_be_lone):
            for request in [request for request in queue if request.work.id == work_id]:
                queue.remove(request)
                self._end_cancelled(request)
        for runs in (self._together, self._lone):
            if (taken := runs.cancel(work_id)) is not None:
                self._end_cancelled(taken)

    def _end_cancelled(self, request: Request) -> None:
        """With what its last run made, which for a suspect is the one that failed."""
        try:
            made = request.text.finish() if request.row is not None else ""
            request.answers.append(request.answer(made, "cancelled") if made else Answer("", "cancelled"))
        except Exception as error:  # noqa: BLE001 - a detokenizer's trouble with this row's tokens
            self._reject(request.work.id, f"the model's tokens cannot be turned into text: {error}")
        else:
            self._events.append(request.generated(self._info, self._clock()))

    def pending(self) -> int:
        """Requests not done, and events that no `step` has handed over yet."""
        queued = len(self._admission) + len(self._waiting) + len(self._to_be_lone)
        return queued + len(self._together) + len(self._lone) + len(self._events)

    def step(self) -> list[Event]:
        """One decoding step of all that decode (and a piece of the prompts that are not read yet)."""
        for admitted in self._admission.take():
            if isinstance(admitted, Rejected):
                self._events.append(admitted)
            else:
                self._queue(admitted)
        self._fill()
        if not (self._taken() or self._events):
            self._admission.wait(_ADMISSION_WAIT_S)
        self._waiting.extendleft(reversed(self._together.step()))
        self._to_be_lone.extendleft(reversed(self._lone.step()))
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Drops all work and gives the batches' memory back. The engine cannot be used afterwards."""
        self._admission.close()
        for collection in (self._waiting, self._to_be_lone, self._events):
            collection.clear()
        self._together.close()
        self._lone.close()
        self._prefixes.clear()

    def _fill(self) -> None:
        """Starts waiting requests while there is room: suspects first, and with nothing beside them."""
        for runs in (self._together, self._lone):
            if runs.suspecting:
                if not self._taken():
                    runs.start_suspect()
                if runs.suspecting:
                    return
        if not self._lone.running:  # one at a time, so that it holds up nobody else for long
            self._start_next(self._to_be_lone, self._lone, most=1)
        self._start_next(self._waiting, self._together, most=self._limits.max_concurrent)

    def _start_next(self, queue: deque[Request], runs: Runs, *, most: int) -> None:
        while queue and len(runs.running) < most and len(self._taken()) < self._limits.max_concurrent:
            request = queue.popleft()
            if self._budget.allows([request.longest_tokens, *self._taken()]):
                runs.start(request)
            else:
                self._events.append(Deferred(request.work.id))

    def _runs(self, prefixes: PrefixCache, *, solo: bool, lookup_tokens: int) -> Runs:
        def open_batch() -> RunningBatch:
            return RunningBatch(
                self._loaded.model,
                self._loaded.tokenizer.eos_token_ids,
                prefill_tokens=self._limits.prefill_tokens,
                prefixes=prefixes,
                solo=solo,
                read_apart=self._read_apart,
                lookup_tokens=lookup_tokens,
            )

        return Runs(open_batch, self._reader, prefixes, self._info, self._tell, self._clock)

    def _tell(self, event: Event) -> None:
        self._events.append(event)

    def _prefix_files(self) -> PrefixFiles | None:
        from mlx_lm.models.cache import make_prompt_cache

        limits, model = self._limits, self._loaded.model
        if limits.prefix_cache_dir is None:
            return None
        return PrefixFiles(
            limits.prefix_cache_dir,
            self._loaded.fingerprint,
            limits.prefix_cache_dir_bytes,
            lambda: make_prompt_cache(model),
        )

    def _reject(self, work_id: int, message: str) -> None:
        self._events.append(Rejected(work_id, message))
