"""Requests that run in one batch: started, read token by token, ended, and one's failure kept from the others.

A failing step cannot tell whose fault it was. Prompts that could not be read are read again, each alone; the rows that
decode have lost nothing. When decoding fails the batch is thrown away and its requests become suspects: each runs again
from its prompt with nothing beside it, and one that fails so as well is rejected; the others finish as if nothing had
been. A request's own logits processors never raise into the batch at all (see `processors`).
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from ..protocol import Rejected, Started
from .batch.running import ReadingError
from .batch.sampling import NO_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ..protocol import EngineInfo, Event
    from .batch.row import Token
    from .batch.running import RunningBatch
    from .prefixes import PrefixCache
    from .requests import Request, RequestReader


class Runs:
    """`open_batch`: makes one, for the first request and after a failure. `tell`: takes what happens, in its order.
    `clock`: in seconds."""

    def __init__(
        self,
        open_batch: Callable[[], RunningBatch],
        reader: RequestReader,
        prefixes: PrefixCache,
        info: EngineInfo,
        tell: Callable[[Event], None],
        clock: Callable[[], float],
    ) -> None:
        self._open_batch = open_batch
        self._reader = reader
        self._prefixes = prefixes
        self._info = info
        self._tell = tell
        self._clock = clock
        self._batch: RunningBatch | None = None
        self._running: dict[int, Request] = {}
        """In the batch, by the id of their work."""
        self._suspects: deque[Request] = deque()
        """Requests that were decoding when that failed."""
        self._on_trial = False
        """Whether a suspect runs, or has run and nothing since."""
        self._to_go_on: list[Request] = []
        """Those of which another answer is wanted, or the same one drawn anew."""

    @property
    def running(self) -> Collection[Request]:
        return self._running.values()

    @property
    def suspecting(self) -> bool:
        """Whether a suspect waits or runs, so that nothing else may be started."""
        return bool(self._suspects) or self._on_trial

    def __len__(self) -> int:
        return len(self._running) + len(self._suspects)

    def start(self, request: Request, *, alone: bool = False) -> None:
        """Runs it from its first answer, or where it has some, its next one. `alone`: its prompt is read by itself."""
        work = request.work
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
        if self._batch is None:
            self._batch = self._open_batch()
        self._batch.add(request.row)
        self._running[work.id] = request
        if not request.answers:
            self._tell(Started(work.id))

    def start_suspect(self) -> None:
        """Called when nothing runs at all: starts the next suspect, or ends the trials."""
        self._on_trial = bool(self._suspects)
        if self._suspects:
            self.start(self._suspects.popleft())

    def step(self) -> list[Request]:
        """One step of the batch. Returns the requests that are to be started again for more, the first to go first."""
        if self._running and self._batch is not None:
            with self._isolated():
                self._take(self._batch.step())
        again, self._to_go_on = self._to_go_on, []
        return again

    def cancel(self, work_id: int) -> Request | None:
        """Takes a request out, and returns it; None where it is not here."""
        for request in self._suspects:
            if request.work.id == work_id:
                self._suspects.remove(request)
                return request
        running = self._running.pop(work_id, None)
        if running is not None and self._batch is not None:
            with self._isolated():
                self._batch.remove([work_id])
        return running

    def close(self) -> None:
        """Drops all requests and gives the batch's memory back."""
        self._running.clear()
        self._suspects.clear()
        self._to_go_on.clear()
        if self._batch is not None:
            self._batch.close()
            self._batch = None

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
        if ended and self._batch is not None:
            self._batch.remove(ended)

    def _advance(self, request: Request, token: Token, now: float) -> bool:
        """Takes one token into a request; when that was its last, ends it and returns True."""
        if token.token == NO_TOKEN:
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
        thinking = request.splitter is not None and request.splitter.thinking
        request.reasoning_tokens += thinking
        if token.finish_reason != "stop":  # else it is the end-of-text token, which is no text
            request.text.add(token.token, may_stop=not thinking)
            if request.work.logprobs:
                request.logprobs.append(self._reader.likely(request, token))
        ended = token.finish_reason is not None or request.text.stopped
        if (request.work.stream and not ended) or request.splitter is not None:
            progress = request.progress()
            if progress is not None and request.work.stream and not ended:
                self._tell(progress)
        if not ended:
            return False
        text = request.text.finish()
        reason = "stop" if token.finish_reason == "stop" or request.text.stopped else "length"
        try:
            answer = request.answer(text, reason)
        except RequestError as error:
            self._reject(request.work.id, str(error))
            return True
        if token.finish_reason == "stop" and (fault := request.schema_fault(answer)) is not None:
            if request.try_again():
                self._to_go_on.append(request)
            else:
                self._reject(request.work.id, fault)
            return True
        request.keep(answer)
        request.cached_tokens = max(request.cached_tokens, request.row.cached_tokens if request.row is not None else 0)
        request.row = None
        if len(request.answers) < request.work.n:
            self._to_go_on.append(request)
        else:
            self._tell(request.generated(self._info, self._clock()))
        return True

    def _not_numbers(self, request: Request) -> str:
        where = f"after {request.completion_tokens:,} tokens" if request.completion_tokens else "at its first token"
        return (
            f"the model's probabilities are not numbers (NaN) for this request, {where}: its weights are damaged, or "
            f"what it computes is out of the range of {self._info.precision}"
        )

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
                    self.start(request, alone=True)
        except Exception as error:  # noqa: BLE001 - the device, the model or mlx-lm: the trial tells whose fault it is
            requests = list(self._running.values())
            self._running.clear()
            if self._batch is not None:
                with contextlib.suppress(Exception):
                    self._batch.close()  # it is broken already, and what it still says does not matter
                self._batch = None
            self._prefixes.clear()
            if self._on_trial:
                for request in requests:
                    self._reject(request.work.id, f"the model failed on this request, alone as well: {error}")
            else:
                self._suspects.extend(requests)

    def _reject(self, work_id: int, message: str) -> None:
        self._tell(Rejected(work_id, message))
