"""A generation's text out of the entries of its Redis stream: each character once, and all of one run.

Knows the entries (`contract.StreamField`) and no Redis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .contract import STREAM_KEY, GenerationResult, StreamEvent, StreamField
from .errors import StreamRestartedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def stream_key(job_id: str) -> str:
    return f"{STREAM_KEY}{job_id}"


class StreamText:
    """The text of a job's latest run, as far as it is known.

    Entries may come twice, and a worker that was taken for dead may go on writing: only what belongs to the run that
    started last counts, and of that only what goes on where the text ends. What is missing, the result supplies.
    """

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._run: str | None = None
        self._text = ""
        self._handed_out = False
        self.ended = False
        """Whether the stream said that the job is over."""

    def read(self, entries: Iterable[Mapping[bytes, bytes]]) -> list[str]:
        """The pieces of text that these entries add.

        Raises `StreamRestartedError` where another run begins after text of an earlier one was handed out.
        """
        pieces: list[str] = []
        for entry in entries:
            event, run = _field(entry, StreamField.EVENT), _field(entry, StreamField.RUN)
            if event == StreamEvent.START and run != self._run:
                if self._handed_out:
                    raise self._restarted()
                self._run, self._text, self.ended = run, "", False
                pieces.clear()
            elif event == StreamEvent.TEXT and run == self._run:
                at, text = int(_field(entry, StreamField.AT) or 0), _field(entry, StreamField.TEXT)
                if at <= len(self._text) < at + len(text):
                    pieces.append(text[len(self._text) - at :])
                    self._text += pieces[-1]
            elif event == StreamEvent.END and (self._run is None or run in ("", self._run)):
                self.ended = True
        self._handed_out |= bool(pieces)
        return pieces

    def rest(self, whole: str) -> str:
        """What `whole`, the job's text, has beyond what was handed out; `StreamRestartedError` where that is void."""
        if not self._handed_out:
            return whole
        if not whole.startswith(self._text):
            raise self._restarted()
        return whole[len(self._text) :]

    def _restarted(self) -> StreamRestartedError:
        return StreamRestartedError(
            f"job {self._job_id} was begun anew: the text streamed so far is void. stream() again reads the new one"
        )


def partial_result(entries: Iterable[Mapping[bytes, bytes]]) -> GenerationResult | None:
    """What a job that failed or was stopped had made, from the first `end` among these entries."""
    for entry in entries:
        if _field(entry, StreamField.EVENT) == StreamEvent.END:
            result = _field(entry, StreamField.RESULT)
            return GenerationResult.model_validate_json(result, strict=False) if result else None
    return None


def _field(entry: Mapping[bytes, bytes], name: StreamField) -> str:
    return entry.get(name.encode(), b"").decode()
