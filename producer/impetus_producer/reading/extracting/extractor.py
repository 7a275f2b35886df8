"""Asks a process of its own for the texts of documents, one file after the other, and starts another when it died."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from . import child

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Markup = Literal["pdf", "html", "markdown"]
_NEEDS = {"pdf": ("pypdf",), "html": ("html_text", "lxml"), "markdown": ("markdown_it", "html_text", "lxml")}


class ExtractionError(Exception):
    """Why there is no text, or no more of it, in one sentence. `retryable`: it may be there another time."""

    def __init__(self, reason: str, retryable: bool = False) -> None:
        super().__init__(reason)
        self.retryable = retryable


def is_installed(kind: Markup) -> bool:
    return all(find_spec(name) is not None for name in _NEEDS[kind])


class Extractor:
    """One for a whole input. For one thread at a time. It may be used again after `close`.

    `text_s`: how long a page, or what is not in pages, may take.
    """

    def __init__(self, text_s: int = 30) -> None:
        self._text_s = text_s
        self._process: subprocess.Popen[str] | None = None

    def texts(self, path: Path, kind: Markup, encoding: str | None) -> Iterator[str]:
        """Those of a file: a PDF's pages, else one. Raises `ExtractionError` where there is none, or no more."""
        process = self._asked({"path": str(path), "kind": kind, "encoding": encoding})
        assert process.stdout is not None
        ended = False
        try:
            while line := process.stdout.readline():
                answer = json.loads(line)
                if "text" in answer:
                    yield answer["text"]
                    continue
                ended = True
                if "refused" in answer:
                    raise ExtractionError(answer["refused"], answer.get("retryable", False))
                return
        finally:
            # Whoever stops listening in the middle of a file would hear the rest of it next time.
            if not ended:
                self.close()
        if process.returncode == -signal.SIGALRM:
            raise ExtractionError(f"reading it takes longer than {self._text_s} s")
        raise ExtractionError("what reads it crashed: the file is broken or made to do that")

    def _asked(self, question: dict[str, str | None]) -> subprocess.Popen[str]:
        """A process that has the question. One that is gone by now died of nothing that is asked here."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        for _ in range(2):
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(question) + "\n")
                process.stdin.flush()
            except BrokenPipeError:
                self.close()
            else:
                return process
        raise ExtractionError("what reads documents ends before it is asked for one", retryable=True)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            # In a session of its own, so that Ctrl-C is ours to answer; it ends when its input does.
            self._process = subprocess.Popen(
                [sys.executable, "-m", child.__name__, str(self._text_s)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
        return self._process

    def close(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.poll() is None:
            process.kill()
        process.communicate()
