"""The generation engine: admits requests, decodes them together, and keeps one's failure from the others.

Each step is one step of the running batch (see `running`). A request starts when there is a place and, in the worst
case of its length, memory for it; if there is none as long as others run it is handed back.

A failing step cannot tell whose fault it was. Prompts that could not be read are read again, each alone; the rows that
decode have lost nothing. When decoding fails the batch is thrown away and its requests run again from their prompts,
one at a time: one that fails alone as well is rejected, the others finish as if nothing had been. A request's own
logits processors never raise into the batch at all (see `sampling`).
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from ..protocol import (
    Answer,
    Deferred,
    EngineInfo,
    Event,
    Generated,
    GenerationWork,
    Rejected,
    Started,
    Work,
)
from .admission import Admission
from .memory import Budget, RowCost, left_by_weights, measure_row_cost
from .prefix_files import PrefixFiles
from .prefixes import PrefixCache
from .requests import Request, RequestReader
from .running import ReadingError, RunningBatch
from .schemas.grammars import Grammars

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .models.loader import LoadedModel
    from .row import Token

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

    `completion_tokens` counts every token the model was run for: the end-of-text token that ended an answer, and the
    tokens of the stop string that did, though neither is in the text. Times count from `admit`.
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
        self._suspects: deque[Request] = deque()
        """Requests that were decoding when that failed: each runs with nothing beside it, before anything else does."""
        self._on_trial = False
        self._to_go_on: list[Request] = []
        """Those of which another answer is wanted, or the same one drawn anew."""
        self._running: dict[int, Request] = {}
        """In the batch, by the id of their work."""
        self._lone: GenerationEngine | None = None
        """For requests that are to be deterministic: the same model, one request at a time, in turn with the batch."""
        self._to_be_lone: deque[Request] = deque()
        self._is_lone: Request | None = None
        """The one that it runs."""
        self._events: list[Event] = []
        self.resize(left_by_weights(loaded.model, self._limits.memory_bytes))
        self._alone = self._budget
        """What requests may take when no other model has a part of the memory."""
        self._batch: RunningBatch | None = self._new_batch()

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
        running = [*self._running.values(), *([self._is_lone] if self._is_lone else ())]
        return [each.longest_tokens for each in running]

    def cancel(self, work_id: int) -> None:
        """Ends a request wherever it is; its place is free for the next step. An unknown id is no error."""
        match self._admission.cancel(work_id):
            case GenerationWork():
                info = self._info
                nothing = (Answer("", "cancelled"),)
                self._events.append(Generated(work_id, nothing, 0, 0, 0.0, 0.0, info.model, info.fingerprint))
            case Request() as read:
                self._end_cancelled(read)
        if self._lone is not None:
            self._lone.cancel(work_id)
        for queue in (self._waiting, self._suspects, self._to_be_lone):
            for request in [request for request in queue if request.work.id == work_id]:
                queue.remove(request)
                self._end_cancelled(request)
        if (running := self._running.pop(work_id, None)) is not None:
            assert self._batch is not None
            with self._isolated():
                self._batch.remove([work_id])
            self._end_cancelled(running)

    def _end_cancelled(self, request: Request) -> None:
        """With what its last run made, which for a suspect is the one that failed."""
        try:
            made = request.text.finish() if request.row is not None else ""
            request.answers.append(request.answer(made, "cancelled") if made else Answer("", "cancelled"))
        except Exception as error:  # noqa: BLE001 - a detokenizer's trouble with this row's tokens
            self._reject(request.work.id, f"the model's tokens cannot be turned into text: {error}")
        else:
            self._end(request)

    def pending(self) -> int:
        """Requests not done, and events that no `step` has handed over yet."""
        requests = (self._waiting, self._suspects, self._running, self._to_be_lone)
        lone = self._lone.pending() if self._lone is not None else 0
        return len(self._admission) + sum(map(len, requests)) + len(self._events) + lone

    def step(self) -> list[Event]:
        """One decoding step of all that decode (and a piece of the prompts that are not read yet)."""
        assert self._batch is not None
        for admitted in self._admission.take():
            if isinstance(admitted, Rejected):
                self._events.append(admitted)
            else:
                self._queue(admitted)
        self._fill()
        if not (self._running or self._events):
            self._admission.wait(_ADMISSION_WAIT_S)
        if self._running:
            with self._isolated():
                self._take(self._batch.step())
        if self._is_lone is not None and self._lone is not None:
            self._events += self._lone.step()
            self._is_lone = self._is_lone if self._lone.pending() else None
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Drops all work and gives the batch's memory back. The engine cannot be used afterwards."""
        self._admission.close()
        for collection in (self._waiting, self._suspects, self._running, self._to_be_lone, self._events):
            collection.clear()
        if self._lone is not None:
            self._lone.close()
            self._lone = self._is_lone = None
        self._prefixes.clear()
        if self._batch is not None:
            self._batch.close()
            self._batch = None

    def _fill(self) -> None:
        """Starts waiting requests while there is room: suspects first, and with nothing beside them."""
        if not self._taken():
            self._on_trial = False
        if self._suspects or self._on_trial:
            if not self._taken():
                self._on_trial = True
                self._start(self._suspects.popleft())
            return
        self._start_lone()
        while self._waiting and len(self._taken()) < self._limits.max_concurrent:
            request = self._waiting.popleft()
            if self._budget.allows([request.longest_tokens, *self._taken()]):
                self._start(request)
            else:
                self._events.append(Deferred(request.work.id))

    def _start_lone(self) -> None:
        """Whoever is to be deterministic shares no step with anybody, and no prompt that was read beside others: so
        nobody changes how the device rounds for it. One at a time, so that it holds up nobody else for long."""
        if not self._to_be_lone or self._is_lone is not None or len(self._taken()) >= self._limits.max_concurrent:
            return
        request = self._to_be_lone.popleft()
        if not self._budget.allows([request.longest_tokens, *self._taken()]):
            self._events.append(Deferred(request.work.id))
            return
        if self._lone is None:
            limits = replace(
                self._limits,
                max_concurrent=1,
                memory_bytes=None,
                prefix_cache_bytes=0,
                prefix_cache_dir=None,
                lookup_tokens=0,
            )
            self._lone = GenerationEngine(self._loaded, self._info, limits, clock=self._clock)
        self._is_lone = request
        self._lone._waiting.append(request)

    def _start(self, request: Request, *, alone: bool = False) -> None:
        """Runs it from its first answer, or where it has some, its next one."""
        work = request.work
        assert self._batch is not None
        try:
            if request.row is not None:  # its last run came to nothing
                request.begin_anew()
            request.row = self._reader.begin(request, alone=alone)
        except RequestError as error:
            self._reject(work.id, str(error))
            return
        except Exception as error:  # noqa: BLE001 - nothing else has run: whatever it is, it is this request's
            self._reject(work.id, f"the request cannot be started: {error}")
            return
        self._batch.add(request.row)
        self._running[work.id] = request
        if not request.answers:
            self._events.append(Started(work.id))

    def _take(self, tokens: list[Token]) -> None:
        """Reads one step's tokens, and ends the requests that are done or at fault."""
        now = self._clock()
        ended: list[int] = []
        for token in tokens:
            if (request := self._running.get(token.id)) is None:
                continue
            try:
                done = self._advance(request, token, now)
            except Exception as error:  # noqa: BLE001 - a detokenizer's trouble with this row's tokens
                self._reject(token.id, f"the model's tokens cannot be turned into text: {error}")
                done = True
            if done:
                del self._running[token.id]
                if token.finish_reason is None:
                    ended.append(token.id)
        if ended:
            assert self._batch is not None
            self._batch.remove(ended)
        self._waiting.extendleft(reversed(self._to_go_on))
        self._to_go_on.clear()

    def _advance(self, request: Request, token: Token, now: float) -> bool:
        """Takes one token into a request; when that was its last, ends it and returns True."""
        if token.broken:
            # What was read may be what is broken, and it must not be where another prompt begins.
            self._prefixes.forget()
            self._reject(request.work.id, self._not_numbers(request))
            return True
        if (error := request.failure()) is not None:
            self._reject(request.work.id, f"choosing a token failed for this request: {error}")
            return True
        request.completion_tokens += 1
        if request.first_token_at is None:
            request.first_token_at = now
        if request.splitter is not None and request.splitter.thinking:
            request.reasoning_tokens += 1
        if token.finish_reason != "stop":  # else it is the end-of-text token, which is no text
            request.text.add(token.token)
            if request.work.logprobs:
                request.logprobs.append(self._reader.likely(request, token))
        ended = token.finish_reason is not None or request.text.stopped
        if (request.work.stream and not ended) or request.splitter is not None:
            progress = request.progress()
            if progress is not None and request.work.stream and not ended:
                self._events.append(progress)
        if not ended:
            return False
        text = request.text.finish()
        reason = "stop" if token.finish_reason == "stop" or request.text.stopped else "length"
        try:
            answer = request.answer(text, reason)
        except RequestError as error:
            self._reject(request.work.id, str(error))
            return True
        if token.finish_reason == "stop" and (fault := request.schema_fault(answer.text)) is not None:
            if request.try_again():
                self._to_go_on.append(request)
            else:
                self._reject(request.work.id, fault)
            return True
        request.answers.append(answer)
        request.cached_tokens = max(request.cached_tokens, request.row.cached_tokens if request.row is not None else 0)
        request.row = None
        if len(request.answers) < request.work.n:
            self._to_go_on.append(request)
        else:
            self._end(request)
        return True

    def _not_numbers(self, request: Request) -> str:
        where = f"after {request.completion_tokens:,} tokens" if request.completion_tokens else "at its first token"
        return (
            f"the model's probabilities are not numbers (NaN) for this request, {where}: its weights are damaged, or "
            f"what it computes is out of the range of {self._info.precision}"
        )

    def _end(self, request: Request) -> None:
        self._events.append(request.generated(self._info, self._clock()))

    @contextlib.contextmanager
    def _isolated(self) -> Any:
        """Runs the batch; what it fails on is put where it runs again, or rejected if it has failed alone."""
        try:
            yield
        except ReadingError as error:
            for row in error.rows:
                if (request := self._running.pop(row.id, None)) is None:
                    continue
                if row.alone or self._on_trial:
                    self._reject(row.id, f"the model failed on this request, alone as well: {error}")
                else:
                    self._start(request, alone=True)
        except Exception as error:  # noqa: BLE001 - the device, the model or mlx-lm: the trial tells whose fault it is
            requests = list(self._running.values())
            self._running.clear()
            assert self._batch is not None
            with contextlib.suppress(Exception):
                self._batch.close()  # it is broken already, and what it still says does not matter
            self._prefixes.clear()
            self._batch = self._new_batch()
            if self._on_trial:
                for request in requests:
                    self._reject(request.work.id, f"the model failed on this request, alone as well: {error}")
            else:
                self._suspects.extend(requests)

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

    def _new_batch(self) -> RunningBatch:
        return RunningBatch(
            self._loaded.model,
            self._loaded.tokenizer.eos_token_ids,
            prefill_tokens=self._limits.prefill_tokens,
            prefixes=self._prefixes,
            solo=self._limits.max_concurrent == 1,
            read_apart=self._read_apart,
            lookup_tokens=self._limits.lookup_tokens,
        )

    def _reject(self, work_id: int, message: str) -> None:
        self._events.append(Rejected(work_id, message))
