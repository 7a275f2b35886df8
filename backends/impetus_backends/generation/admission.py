"""What a request goes through before it can run: it is read, held against memory, and its JSON schema prepared."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ..errors import RequestError
from ..protocol import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from ..protocol import GenerationWork
    from .memory import Budget
    from .requests import Request, RequestReader
    from .schemas.grammars import Grammars


class Admission:
    """`budget`: what requests may take when no other model has a part of the memory. `clock`: in seconds.

    Long prompts are read, and schemas prepared, by threads: whoever comes later may be ready first.
    """

    def __init__(
        self, reader: RequestReader, grammars: Grammars, budget: Callable[[], Budget], clock: Callable[[], float]
    ) -> None:
        self._reader = reader
        self._grammars = grammars
        self._budget = budget
        self._clock = clock
        self._preparing: deque[Request] = deque()
        """Requests whose JSON schemas are not ready."""
        self._done: deque[Request | Rejected] = deque()

    def __len__(self) -> int:
        return len(self._reader.long) + len(self._preparing) + len(self._done)

    def put(self, work: GenerationWork) -> None:
        if self._reader.long.is_long(work):
            self._reader.long.put(work, self._clock())
        else:
            self._read(work, self._clock())

    def take(self) -> Iterator[Request | Rejected]:
        """Those that can run now, and those that never can."""
        while (read := self._reader.long.take()) is not None:
            self._read(*read)
        self._look_at_schemas()
        while self._done:
            yield self._done.popleft()

    def wait(self, timeout_s: float) -> None:
        """Returns when there may be more to take, or after this long."""
        if self._preparing:
            self._grammars.wait(timeout_s)
        else:
            self._reader.long.wait(timeout_s)

    def cancel(self, work_id: int) -> Request | GenerationWork | None:
        """Forgets a request and returns it, as far as it was read; None where it is not here."""
        for queue in (self._preparing, self._done):
            for each in queue:
                if not isinstance(each, Rejected) and each.work.id == work_id:
                    queue.remove(each)
                    return each
        return self._reader.long.cancel(work_id)

    def close(self) -> None:
        self._reader.long.close()
        self._grammars.close()
        self._preparing.clear()
        self._done.clear()

    def _read(self, work: GenerationWork, admitted_at: float, tokens: Future[list[int]] | None = None) -> None:
        try:
            read = tokens.result() if tokens is not None else None
            request = self._reader.read(work, admitted_at, lambda tokens: self._budget().allows([tokens]), read)
            self._check_memory(request)
        except RequestError as error:
            self._done.append(Rejected(work.id, str(error)))
            return
        if request.schema is None:
            self._done.append(request)
        else:
            self._preparing.append(request)
            self._look_at_schemas()  # so that its preparation begins

    def _check_memory(self, request: Request) -> None:
        budget, tokens = self._budget(), request.longest_tokens
        if not budget.allows([tokens]):
            needed, limit = budget.needed_bytes([tokens]), budget.limit_bytes or 0
            raise RequestError(
                f"{tokens:,} tokens, prompt and max_tokens together, need {needed / 2**20:,.1f} MiB of memory for keys "
                f"and values, and this worker has {limit / 2**20:,.1f} MiB for them"
            )

    def _look_at_schemas(self) -> None:
        for _ in range(len(self._preparing)):
            request = self._preparing.popleft()
            schema = request.schema
            assert schema is not None
            if not self._grammars.is_ready(schema):
                self._preparing.append(request)
                continue
            try:
                request.constraint = self._grammars.constraint(schema)
            except RequestError as error:
                field = "response_format" if request.work.schema is not None else "tools"
                self._done.append(Rejected(request.work.id, f"{field}: {error}"))
            else:
                self._done.append(request)
