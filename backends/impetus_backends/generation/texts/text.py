"""Turns one request's tokens into text as they come, and ends it at a stop string."""

from __future__ import annotations

from typing import Protocol

from .detokenize import REPLACEMENT


class GrowingText(Protocol):
    """As `detokenize.Detokenizer` is one."""

    def add(self, token: int) -> None: ...

    @property
    def text(self) -> str: ...

    @property
    def settled(self) -> int:
        """How many characters of `text`, from the first, no later token changes."""
        ...

    def whole(self) -> str: ...


class TextBuilder:
    """The text of one request: whole characters only, ending before its first stop string and never holding one.

    Which stop string is first does not depend on how the text was cut into tokens: it is the one that is complete
    first, and of those the longest. The text does not depend on who looks: `take` changes nothing, and what it returned
    is what `finish` begins with. `marks`: within what is none of the text, stop strings end nothing.
    """

    def __init__(self, growing: GrowingText, stop: tuple[str, ...] = (), marks: tuple[str, ...] = ()) -> None:
        self._growing = growing
        self._marks = marks
        self._undecided: int | None = None
        """Where a stop string stands that may turn out to be within a mark."""
        self._stops = [_StopString(each) for each in stop]
        self._searched = 0
        """So many characters, all settled, hold no stop string that counts."""
        self._from = 0
        """So many were never looked at: there a stop string ends nothing."""
        self._end: int | None = None
        self._taken = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been met. Tokens added after that change nothing."""
        return self._end is not None

    def add(self, token: int, *, may_stop: bool = True) -> None:
        """Takes the next token in, which is no end-of-text token. `may_stop`: whether stop strings count here."""
        if self.stopped:
            return
        self._growing.add(token)
        if self._stops and may_stop:
            self._find_stop(self._growing.text)
        elif self._stops:
            self._searched = self._from = self._growing.settled
            for each in self._stops:
                each.begun = 0

    def take(self) -> str:
        """What has come to the text since the last `take`, less what later tokens may still change."""
        text = self._growing.text
        end = self._end if self._end is not None else self._growing.settled - self._held_back()
        if self._undecided is not None:
            end = min(end, self._undecided)
        piece = text[self._taken : end].rstrip(REPLACEMENT)
        self._taken += len(piece)
        return piece

    def finish(self) -> str:
        """The whole text. Bytes at its end that make no character are dropped; elsewhere they are U+FFFD."""
        text = self._growing.text if self.stopped else self._growing.whole()
        if not self.stopped and self._stops and (text != self._growing.text or self._undecided is not None):
            self._searched = self._from  # a tokenizer that takes back what it seemed to have settled
            self._find_stop(text, ended=True)
        return text[: self._end].rstrip(REPLACEMENT)

    def _held_back(self) -> int:
        """How many settled characters at the end may be the beginning of a stop string."""
        return max((each.begun for each in self._stops), default=0)

    def _find_stop(self, text: str, *, ended: bool = False) -> None:
        found = [
            (at + len(each.text), at)
            for each in self._stops
            if (at := self._find(text, each.text, max(0, self._searched - each.begun))) >= 0
        ]
        self._undecided = None
        if found:
            end, at = min(found)
            if ended or not self._may_be_mark(text, end):
                self._end = at
            else:
                self._undecided = at
            return
        if (settled := self._growing.settled) > self._searched:
            for each in self._stops:
                each.read(text[self._searched : settled])
            self._searched = settled

    def _find(self, text: str, stop: str, at: int) -> int:
        """The first that is not within a mark, to which white space after it belongs."""
        while (at := text.find(stop, at)) >= 0:
            near = len(text[:at].rstrip())
            ends = (_mark_end(text, mark, near, at + len(stop)) for mark in self._marks)
            if (end := max(ends, default=0)) <= at:
                return at
            at = end
        return at

    def _may_be_mark(self, text: str, end: int) -> bool:
        """Whether a mark may have begun before `end` of which there is not all as yet."""
        most = max(map(len, self._marks), default=0)
        return any(
            mark.startswith(text[begin:]) for begin in range(max(0, len(text) - most), end) for mark in self._marks
        )


def _mark_end(text: str, mark: str, begin: int, end: int) -> int:
    """Where a mark ends that reaches to or lies between these characters, and white space after it; 0 for none."""
    at = text.find(mark, max(0, begin - len(mark)), end + len(mark) - 1)
    if at < 0:
        return 0
    after = text[at + len(mark) :]
    return len(text) - len(after.lstrip())


class _StopString:
    """Knows how much of it the text read so far ends with, at a cost that does not grow with its length (Knuth, Morris
    and Pratt)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.begun = 0
        self._falls_back_to = [0, 0]
        """By how much of it is there: how much there is as well, and is less."""

    def read(self, piece: str) -> None:
        """What `piece` completes has been looked for, and ended nothing."""
        for character in piece:
            while self.begun and self.text[self.begun] != character:
                self.begun = self._fallback(self.begun)
            self.begun += self.text[self.begun] == character
            if self.begun == len(self.text):
                self.begun = self._fallback(self.begun)

    def _fallback(self, length: int) -> int:
        """Worked out no further than texts come to it."""
        known, text = self._falls_back_to, self.text
        while len(known) <= length:
            there = known[-1]
            while there and text[there] != text[len(known) - 1]:
                there = known[there]
            known.append(there + (text[there] == text[len(known) - 1]))
        return known[length]
