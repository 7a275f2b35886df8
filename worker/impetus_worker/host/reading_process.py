"""The process that reads long jobs, one at a time. Both ends of its pipe live in this module.

What a job holds may cost its reader minutes, gigabytes or its life. Here that costs nobody else anything: a job has so
long to be read, and whatever becomes of the process, only the job that it was reading is to blame.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING

from .. import logs
from ..companions.companion import Companion
from ..errors import InvalidRequestError, PoisonedJobError
from ..inbox import ReadElsewhere
from ..roles import make_requests
from . import child

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Collection
    from multiprocessing.connection import Connection

    from impetus_backends.protocol import EngineInfo

    from ..allowed import Allowed
    from ..leases.claims import ClaimedJob

_LIMIT_S = 20.0
"""With what it takes to start the process and to load a tokenizer. The longest jobs that people send take two or three;
the other long ones wait meanwhile."""
_ATTEMPTS = 2
"""A process may be killed, or asleep for a while, for what is no fault of the job."""
_log = logging.getLogger(__name__)


class ReadingProcess(Companion):
    """The worker's end, and the `Elsewhere` of its batcher. The process is started when there is something to read.

    `limit_s`: how long a job may be read. What came of each is told as a `ReadElsewhere`: what `read` of the requests
    of its role returns, or an `ImpetusError`.
    """

    def __init__(
        self,
        info: EngineInfo,
        allowed: Allowed,
        tell: Callable[[object], None],
        limit_s: float = _LIMIT_S,
    ) -> None:
        super().__init__("reading", tell)
        self._config = (info, allowed)
        self._limit_s = limit_s
        self._changed = threading.Condition()
        self._failures: dict[str, int] = {}
        """By token, how often the process died of a job, or ran out of time with it."""
        self._urgent: deque[ClaimedJob] = deque()
        self._patient: deque[ClaimedJob] = deque()
        self._under_way = ""
        """The token of the run that is being read."""
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    # -- from the worker's loop --------------------------------------------------------------------------------------

    def read(self, job: ClaimedJob, *, urgent: bool) -> None:
        with self._changed:
            (self._urgent if urgent else self._patient).append(job)
            self._changed.notify()

    def forget(self, tokens: Collection[str]) -> None:
        with self._changed:
            for waiting in (self._urgent, self._patient):
                kept = [job for job in waiting if job.token not in tokens]
                waiting.clear()
                waiting.extend(kept)
            for token in tokens:
                self._failures.pop(token, None)
            if self._under_way in tokens:
                self._under_way = ""
                self._kill()

    def stop(self) -> None:
        with self._changed:
            super().stop()
            self._kill()
            self._changed.notify()

    # -- in the thread -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        while (job := self._next()) is not None:
            came = self._read(job)
            with self._changed:
                wanted, self._under_way = self._under_way == job.token, ""
                if wanted and came is None:
                    self._patient.append(job)  # once more, when the others have had their turn
            if wanted and came is not None and not self.stopped.is_set():
                self._failures.pop(job.token, None)
                self.tell(ReadElsewhere(job.token, came))
        self._hang_up()

    def _next(self) -> ClaimedJob | None:
        with self._changed:
            while not (self._urgent or self._patient or self.stopped.is_set()):
                self._changed.wait()
            if self.stopped.is_set():
                return None
            job = (self._urgent or self._patient).popleft()
            self._under_way = job.token
            return job

    def _read(self, job: ClaimedJob) -> object:
        """What came of it; None where the process died or ran out of time, and it is to be tried again."""
        late = threading.Event()
        limit = threading.Timer(self._limit_s, self._out_of_time, (late,))
        limit.start()
        try:
            return self._ask(job)
        except (EOFError, OSError):
            how = self._hang_up()
        finally:
            limit.cancel()
        if late.is_set():
            how = f"took longer than the {self._limit_s:.0f} s it may"
        with self._changed:
            if self._under_way != job.token or self.stopped.is_set():
                return None
        _log.error("job %s: the process that reads long jobs %s", job.id, how)
        self._failures[job.token] = failures = self._failures.get(job.token, 0) + 1
        if failures < _ATTEMPTS:
            return None
        return PoisonedJobError(f"data: the process that read this job {how}, each of {_ATTEMPTS} times")

    def _ask(self, job: ClaimedJob) -> object:
        with self._changed:
            if self._pipe is None:
                self._process, self._pipe = child.spawn(__name__)
                greeting: object = self._config
            else:
                greeting = None
            pipe = self._pipe
        if greeting is not None:
            pipe.send(greeting)
        pipe.send(dict(job.fields))
        return pipe.recv()

    def _out_of_time(self, late: threading.Event) -> None:
        late.set()
        with self._changed:
            self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            child.kill(self._process)

    def _hang_up(self) -> str:
        """Reaps the process; returns how it ended."""
        with self._changed:
            process, pipe = self._process, self._pipe
            self._process = self._pipe = None
        if pipe is not None:
            pipe.close()
        return child.reap(process) if process is not None else ""


def main() -> None:
    pipe = child.theirs()
    logs.set_up("reading", logging.WARNING)
    inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
    info, allowed = pipe.recv()
    threading.Thread(target=child.listen, args=(pipe, inbox), name="pipe", daemon=True).start()
    requests = make_requests(info, allowed)
    while True:
        fields = inbox.get()
        try:
            came: object = requests.read(fields)  # type: ignore[arg-type]  # the worker sends nothing else
        except InvalidRequestError as error:
            came = error
        child.say(pipe, came)
