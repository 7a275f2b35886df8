"""What running generations say, on its way to the token streams that clients read; and whether anybody waits for them.

Collected here until the worker's next exchange with Redis: pieces that come faster than Redis answers go together, so a
reader never slows the worker. Each entry is written only while the run's token stands, so none of an earlier run comes
after one of a later.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from impetus_producer.contract import AWAITED_KEY, STREAM_KEY, STREAM_TTL_S, StreamEvent

from .scripts import Call, Script, ids

if TYPE_CHECKING:
    from .claims import ClaimedJob
    from .outcomes import Said

_ASK_EVERY_S = 2.0
_ASK = "ask"


class Relay:
    """Called from one thread. Times are of `time.monotonic()`, in seconds."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._said: list[Said] = []
        self._sent: list[Said] = []
        """Under way, and sent again if the answer is lost: readers know what they have by its place in the text."""
        self._watched: dict[str, ClaimedJob] = {}
        """Jobs that are to run only while somebody waits for them."""
        self._ask_at = 0.0

    def say(self, said: Said) -> None:
        last = self._said[-1] if self._said else None
        both = StreamEvent.TEXT
        if last and last.event == said.event == both and (last.run, last.channel) == (said.run, said.channel):
            self._said[-1] = replace(said, at=last.at, text=last.text + said.text)
        else:
            self._said.append(said)

    def watch(self, job: ClaimedJob) -> None:
        """From now on it is asked whether anybody waits for this job, for the first time at once."""
        self._watched[job.id] = job
        self._ask_at = 0.0

    def forget(self, job: ClaimedJob) -> None:
        if self._watched.get(job.id) is job:
            del self._watched[job.id]

    def has_news(self, now: float) -> bool:
        return bool(self._said) or (bool(self._watched) and now >= self._ask_at)

    def unsent(self) -> set[str]:
        """Tokens of the runs of which something is to be sent."""
        return {said.job.token for said in self._said}

    def unsure(self) -> set[str]:
        """Tokens of the runs of which it is not known that all they said is written."""
        return {said.job.token for said in (*self._said, *self._sent)}

    def relaying(self, now: float) -> Call[list[str]]:
        """Writes what was said, and asks what is to be asked; the answer is the ids of jobs nobody waits for."""
        arguments: list[Any] = [self._worker, STREAM_KEY, STREAM_TTL_S, AWAITED_KEY]
        self._sent, self._said = self._said, []
        for said in self._sent:
            job = said.job
            arguments += (job.id, job.token, job.queue, said.event.value, said.run, said.at, said.text.encode(),
                          said.channel or said.status, said.result)  # fmt: skip
        if now >= self._ask_at:
            self._ask_at = now + _ASK_EVERY_S
            for job in self._watched.values():
                arguments += (job.id, job.token, job.queue, _ASK, "", 0, "", "", "")
        return Call(Script.named("relay"), arguments, ids)

    def sent(self) -> None:
        """What was sent last is written."""
        self._sent = []

    def recall(self) -> None:
        """It is unknown whether what was sent last is written."""
        self._said = [*self._sent, *self._said]
        self._sent = []
        self._ask_at = 0.0
