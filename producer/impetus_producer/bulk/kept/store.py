"""A store: what models answered, by content, fingerprint and options, so that nothing is computed twice.

Knows keys and bytes. Knows no text, no Redis.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from .databases import database_errors, open_database

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

_SCHEMA = """
CREATE TABLE IF NOT EXISTS makers
  (maker INTEGER PRIMARY KEY, model TEXT, fingerprint TEXT, UNIQUE (model, fingerprint));
CREATE TABLE IF NOT EXISTS answers (key BLOB, maker INTEGER, value BLOB, PRIMARY KEY (key, maker))
"""
_KEYS_AT_ONCE = 500
"""SQLite before 3.32 takes 999 values in one statement."""


class Served(NamedTuple):
    """A model that answers now."""

    model: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model made of one content. `value`: little-endian float32 of a vector, or JSON of a generation."""

    value: bytes
    model: str
    fingerprint: str


class AnswerStore(AbstractContextManager["AnswerStore"], ABC):
    """Where answers are kept and found by their keys."""

    lasts: ClassVar[bool] = True
    """Whether what is kept stays until somebody deletes it."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __bool__(self) -> bool:
        """Whether there is anything in it."""

    @abstractmethod
    def find(self, keys: Sequence[bytes], fingerprints: Iterable[str]) -> dict[bytes, Answer]:
        """The answers to those of `keys` that models of these fingerprints gave."""

    @abstractmethod
    def keep(self, answers: Iterable[tuple[bytes, Answer]]) -> None:
        """Once it returns they outlive this process."""

    @abstractmethod
    def close(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Store(AnswerStore):
    """An SQLite file of answers, made where it is not there. Threads, and processes of one machine, may share it.

    Holds hashes of texts and what was made of them, no text. Raises `ImpetusError` where it cannot be read or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._database = open_database(self.path, _SCHEMA)
        self._makers: dict[tuple[str, str], int] = {}

    def __len__(self) -> int:
        with self._lock, database_errors(self.path):
            return int(self._database.execute("SELECT count(*) FROM answers").fetchone()[0])

    def __bool__(self) -> bool:
        with self._lock, database_errors(self.path):
            return self._database.execute("SELECT 1 FROM answers LIMIT 1").fetchone() is not None

    def find(self, keys: Sequence[bytes], fingerprints: Iterable[str]) -> dict[bytes, Answer]:
        found: dict[bytes, Answer] = {}
        accepted = list(fingerprints)
        marks = ", ".join("?" * len(accepted))
        with self._lock, database_errors(self.path):
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                part = keys[start : start + _KEYS_AT_ONCE]
                rows = self._database.execute(
                    "SELECT key, value, model, fingerprint FROM answers JOIN makers USING (maker) "
                    f"WHERE key IN ({', '.join('?' * len(part))}) AND fingerprint IN ({marks})",
                    (*part, *accepted),
                )
                found |= {key: Answer(value, model, fingerprint) for key, value, model, fingerprint in rows}
        return found

    def keep(self, answers: Iterable[tuple[bytes, Answer]]) -> None:
        """All of them or, where it raises, none."""
        with self._lock, database_errors(self.path):
            makers = dict(self._makers)
            with self._database:
                self._database.executemany(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)",
                    [(key, self._maker(answer, makers), answer.value) for key, answer in answers],
                )
            self._makers = makers  # those that were not written are not known

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _maker(self, answer: Answer, makers: dict[tuple[str, str], int]) -> int:
        who = (answer.model, answer.fingerprint)
        if (known := makers.get(who)) is None:
            self._database.execute("INSERT OR IGNORE INTO makers (model, fingerprint) VALUES (?, ?)", who)
            (known,) = self._database.execute(
                "SELECT maker FROM makers WHERE model = ? AND fingerprint = ?", who
            ).fetchone()
            makers[who] = known
        return known
