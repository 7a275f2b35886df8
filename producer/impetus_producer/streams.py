"""A generation's text out of the entries of its Redis stream: each character once, and all of one run.

Knows the entries (`contract.StreamField`) and no Redis.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from .contract import STREAM_KEY, GenerationResult, StreamEvent, StreamField, channel_name
from .errors import StreamRestartedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .contract.conversation import ToolCall


_CHANNEL = re.compile("(reasoning|[1-9][0-9]{0,2}(/reasoning)?)?")
_PLACE = re.compile("[0-9]{1,12}")
_NAMES = tuple(
    name.encode()
    for name in (StreamField.EVENT, StreamField.RUN, StreamField.AT, StreamField.TEXT, StreamField.CHANNEL)
)


class _Entry(NamedTuple):
    event: str
    run: str
    at: int
    text: str
    channel: str


def stream_key(job_id: str) -> str:
    return f"{STREAM_KEY}{job_id}"


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer while it is made."""

    text: str = ""
    reasoning: str = ""
    """Of what a model that thinks thinks before it answers."""
    choice: int = 0
    """Which answer this is of, where `n` asked for more than one."""
    calls: tuple[ToolCall, ...] = ()
    """Tools that are to be called, all at the end."""


class StreamText:
    """What a job's latest run says, as far as it is known.

    Entries may come twice, and a worker that was taken for dead may go on writing: only what belongs to the run that
    started last counts, and of that only what goes on where its channel ends. An entry that is none of the contract's
    is passed over. What is missing, the result supplies.
    """

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._run: str | None = None
        self._said: dict[str, str] = {}
        """By channel."""
        self._handed_out = False
        self.ended = False
        """Whether the stream said that the job is over."""

    def read(self, entries: Iterable[Mapping[bytes, bytes]]) -> list[Delta]:
        """What these entries add.

        Raises `StreamRestartedError` where another run begins after text of an earlier one was handed out.
        """
        pieces: list[Delta] = []
        for event, run, at, text, channel in filter(None, map(_read, entries)):
            if event == StreamEvent.START and run != self._run:
                if self._handed_out:
                    raise self._restarted()
                self._run, self.ended = run, False
                self._said.clear()
                pieces.clear()
            elif event == StreamEvent.TEXT and run == self._run:
                said = self._said.get(channel, "")
                if at <= len(said) < at + len(text):
                    pieces.append(_delta(channel, text[len(said) - at :]))
                    self._said[channel] = said + text[len(said) - at :]
            elif event == StreamEvent.END and (self._run is None or run in ("", self._run)):
                self.ended = True
        self._handed_out |= bool(pieces)
        return pieces

    def rest(self, whole: GenerationResult) -> list[Delta]:
        """What the result has beyond what was handed out; `StreamRestartedError` where that is void."""
        rest: list[Delta] = []
        for choice, answer in enumerate(whole.choices):
            for reasoning, text in ((True, answer.reasoning_content or ""), (False, answer.text)):
                channel = channel_name(choice, reasoning=reasoning)
                said = self._said.get(channel, "") if self._handed_out else ""
                if not text.startswith(said):
                    raise self._restarted()
                if len(text) > len(said):
                    rest.append(_delta(channel, text[len(said) :]))
            if answer.tool_calls:
                rest.append(Delta(choice=choice, calls=tuple(answer.tool_calls)))
        return rest

    def _restarted(self) -> StreamRestartedError:
        return StreamRestartedError(
            f"job {self._job_id} was begun anew: the text streamed so far is void. stream() again reads the new one"
        )


def _delta(channel: str, text: str) -> Delta:
    """`channel` is one that `channel_name` makes."""
    number, _, _ = channel.partition("/")
    choice = int(number) if number.isdecimal() else 0
    return Delta(reasoning=text, choice=choice) if channel.endswith("reasoning") else Delta(text, choice=choice)


def partial_result(entries: Iterable[Mapping[bytes, bytes]]) -> GenerationResult | None:
    """What a job that failed or was stopped had made, from the first `end` among these entries, if it can be read."""
    for entry in entries:
        if entry.get(StreamField.EVENT.encode()) == StreamEvent.END.encode():
            result = entry.get(StreamField.RESULT.encode())
            try:
                return GenerationResult.model_validate_json(result, strict=False) if result else None
            except ValidationError:
                return None
    return None


def _read(entry: Mapping[bytes, bytes]) -> _Entry | None:
    """None for what is no entry of the contract's."""
    try:
        event, run, at, text, channel = (entry.get(name, b"").decode() for name in _NAMES)
    except UnicodeDecodeError:
        return None
    if event == StreamEvent.TEXT and not (_PLACE.fullmatch(at) and _CHANNEL.fullmatch(channel)):
        return None
    return _Entry(event, run, int(at) if event == StreamEvent.TEXT else 0, text, channel)
