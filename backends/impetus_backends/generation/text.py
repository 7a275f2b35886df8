"""Turns one request's tokens into text as they come, and ends it at a stop string."""

from __future__ import annotations

from typing import Any

_REPLACEMENT = "\ufffd"


class TextBuilder:
    """The text of one request: whole characters only, ending before its first stop string and never holding one.

    `detokenizer` is a fresh one of mlx-lm's streaming detokenizers; it holds back the bytes of an unfinished
    character. Which stop string is first does not depend on how the text was cut into tokens: it is the one that is
    complete first, and of those the longest.
    """

    def __init__(self, detokenizer: Any, stop: tuple[str, ...] = ()) -> None:
        self._detokenizer = detokenizer
        self._stop = stop
        self._longest_stop = max(map(len, stop), default=0)
        self._searched = 0
        self._end: int | None = None
        self._taken = 0
        # Such a detokenizer takes the space out of "do n't" when it sees the rest of the word.
        self._revises_words = bool(getattr(detokenizer, "_clean_spaces", False))

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been met. Tokens added after that change nothing."""
        return self._end is not None

    def add(self, token: int) -> None:
        """Takes the next token in. An end-of-text token is not to be added."""
        if not self.stopped:
            self._detokenizer.add_token(token)
            if self._stop:
                self._find_stop(self._detokenizer.text)

    def take(self) -> str:
        """What has come to the text since the last `take`, less what later tokens may still change."""
        text: str = self._detokenizer.text
        end = self._end if self._end is not None else len(text) - self._held_back(text)
        piece = text[self._taken : end].rstrip(_REPLACEMENT)
        self._taken += len(piece)
        return piece

    def finish(self) -> str:
        """The whole text. Bytes at its end that make no character are dropped; elsewhere they are U+FFFD."""
        if not self.stopped:
            self._detokenizer.finalize()
            if self._stop:
                # Finishing lets go of what was held back, and that may complete a stop string.
                self._find_stop(self._detokenizer.text)
        text: str = self._detokenizer.text
        return text[: self._end].rstrip(_REPLACEMENT)

    def _settled(self, text: str) -> int:
        """How many characters of the text, from the first, no later token changes."""
        if not self._revises_words:
            return len(text)
        before_last_word = text[: max(text.rfind(" "), 0)].rstrip(" ")
        return max(len(before_last_word), text.rfind("\n") + 1)

    def _held_back(self, text: str) -> int:
        """How many characters at the end may be part of a stop string, or may yet be revised."""
        settled = self._settled(text)
        for length in range(min(self._longest_stop - 1, settled), 0, -1):
            if any(stop.startswith(text[settled - length : settled]) for stop in self._stop):
                return len(text) - settled + length
        return len(text) - settled

    def _find_stop(self, text: str) -> None:
        start = max(0, self._searched - self._longest_stop + 1)
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop, start)) >= 0]
        if found:
            self._end = min(found)[1]
        self._searched = self._settled(text)
