"""What a run keeps as it goes: nothing, answers in a store, or all that it takes to go on after its death.

A window asks before it sends and tells before it lets go: `find`, `sent`, `keep`, `ended`. What `keep` was told of is
there when it returns, so that whatever a killed run had not kept is still in Redis, under the ids told to `sent`.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

from .databases import database_errors, open_database
from .store import Answer, AnswerStore, Served, Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

ANSWERS = "answers.sqlite"
JOURNAL = "journal.sqlite"
_ID_BYTES = 16
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, keys BLOB);
CREATE TABLE IF NOT EXISTS failures (key BLOB PRIMARY KEY, reason TEXT);
CREATE TABLE IF NOT EXISTS fingerprints (fingerprint TEXT PRIMARY KEY, model TEXT);
CREATE TABLE IF NOT EXISTS usage (name TEXT PRIMARY KEY, count INTEGER)
"""


class Keeper:
    """Keeps nothing, and counts. The base of those that do."""

    def __init__(self) -> None:
        self.fingerprints: set[str] = set()
        """Of all answers of this run. Answers that were kept are taken if theirs is among these."""
        self.usage: Counter[str] = Counter()
        self.taken = 0
        """Documents whose answer was known."""
        self.computed = 0
        """Answers that this run made."""

    @property
    def asks_for_fingerprint(self) -> bool:
        """Whether answers are kept, of which a fingerprint says if they are right: then give it to `accept`."""
        return False

    def accept(self, served: Served) -> None:
        """What is kept of models other than this one is not taken."""
        self.fingerprints = {served.fingerprint}

    def find(self, keys: Sequence[bytes]) -> Mapping[bytes, Answer | str]:
        """What is known of these: an answer, or the reason why there is none."""
        return {}

    def unfinished(self) -> Mapping[str, Sequence[bytes]]:
        """The jobs that a run before this one left in Redis, and what they carry."""
        return {}

    def sent(self, jobs: Mapping[str, Sequence[bytes]]) -> None:
        """These are about to be enqueued."""

    def keep(
        self, answers: Sequence[tuple[bytes, Answer]], failures: Sequence[tuple[bytes, str]], usage: Mapping[str, int]
    ) -> None:
        """`failures`: those that would fail again."""
        self.fingerprints.update(answer.fingerprint for _, answer in answers)
        self.usage.update(usage)
        self.computed += len(answers)

    def ended(self, job_ids: Iterable[str]) -> None:
        """Nothing is left of these in Redis."""


class StoreKeeper(Keeper):
    """Keeps answers in a store."""

    def __init__(self, store: AnswerStore) -> None:
        super().__init__()
        self._store = store

    @property
    def asks_for_fingerprint(self) -> bool:
        return bool(self._store)

    def find(self, keys: Sequence[bytes]) -> Mapping[bytes, Answer | str]:
        return self._store.find(keys, self.fingerprints) if self.fingerprints else {}

    def keep(
        self, answers: Sequence[tuple[bytes, Answer]], failures: Sequence[tuple[bytes, str]], usage: Mapping[str, int]
    ) -> None:
        self._store.keep(answers)
        super().keep(answers, failures, usage)


class Journal(Keeper, AbstractContextManager["Journal"]):
    """Keeps answers, failures and the window of jobs in the files of a folder, from which another process goes on.

    `store`: where answers go instead, to be found by other runs too; or beside, where it does not last. `jobs_stay`:
    whether the server is there after this run.
    """

    def __init__(self, folder: Path, store: AnswerStore | None = None, *, jobs_stay: bool = True) -> None:
        super().__init__()
        self._jobs_stay = jobs_stay
        self._path = folder / JOURNAL
        with ExitStack() as opened:
            self._database = open_database(self._path, _SCHEMA)
            opened.callback(self._database.close)
            own = folder / ANSWERS
            self._stores: list[AnswerStore] = []
            """Where answers are looked for."""
            self._kept_in: list[AnswerStore] = []
            if store is not None:
                self._stores.append(store)
                self._kept_in.append(store)
            if store is None or not store.lasts or own.exists():
                self._stores.insert(0, opened.enter_context(Store(own)))
            if store is None or not store.lasts:
                self._kept_in.insert(0, self._stores[0])
            with database_errors(self._path):
                known = self._database.execute("SELECT fingerprint, model FROM fingerprints").fetchall()
                counted = self._database.execute("SELECT name, count FROM usage").fetchall()
            self._opened = opened.pop_all()
        self._of_earlier_runs: dict[str, str] = dict(known)
        self._recorded: set[tuple[str, str]] = set()
        self.usage.update(dict(counted))

    @property
    def goes_on(self) -> bool:
        """Whether an earlier run of this output had come anywhere."""
        return bool(self._of_earlier_runs)

    @property
    def holds_anything(self) -> bool:
        """Whether there is anything to go on with."""
        with database_errors(self._path):
            (jobs,) = self._database.execute("SELECT count(*) FROM jobs").fetchone()
        return bool(self._of_earlier_runs or self._recorded or jobs)

    @property
    def asks_for_fingerprint(self) -> bool:
        return any(map(bool, self._stores))

    def accept(self, served: Served) -> None:
        super().accept(served)
        # Several kinds of devices may work one queue: the answers of an earlier run fit if it met this one too.
        if served.fingerprint in self._of_earlier_runs:
            self.fingerprints |= {each for each, model in self._of_earlier_runs.items() if model == served.model}
            return
        with database_errors(self._path), self._database:
            self._database.execute("DELETE FROM failures")
            self._database.execute("DELETE FROM usage")
        self.usage.clear()

    def find(self, keys: Sequence[bytes]) -> Mapping[bytes, Answer | str]:
        found: dict[bytes, Answer | str] = {}
        if not self.fingerprints:
            return found
        for store in self._stores:
            found |= store.find([key for key in keys if key not in found], self.fingerprints)
        with database_errors(self._path):
            for key in keys:
                if key not in found and (
                    row := self._database.execute("SELECT reason FROM failures WHERE key = ?", (key,)).fetchone()
                ):
                    found[key] = row[0]
        return found

    def unfinished(self) -> Mapping[str, Sequence[bytes]]:
        with database_errors(self._path):
            rows = self._database.execute("SELECT id, keys FROM jobs").fetchall()
        return {job_id: [keys[at : at + _ID_BYTES] for at in range(0, len(keys), _ID_BYTES)] for job_id, keys in rows}

    def sent(self, jobs: Mapping[str, Sequence[bytes]]) -> None:
        if not self._jobs_stay:
            return
        with database_errors(self._path), self._database:
            self._database.executemany(
                "INSERT OR REPLACE INTO jobs VALUES (?, ?)", [(job_id, b"".join(keys)) for job_id, keys in jobs.items()]
            )

    def keep(
        self, answers: Sequence[tuple[bytes, Answer]], failures: Sequence[tuple[bytes, str]], usage: Mapping[str, int]
    ) -> None:
        for store in self._kept_in:
            store.keep(answers)
        super().keep(answers, failures, usage)
        with database_errors(self._path), self._database:
            self._database.executemany("INSERT OR REPLACE INTO failures VALUES (?, ?)", failures)
            self._database.executemany("INSERT OR REPLACE INTO usage VALUES (?, ?)", self.usage.items())
            if new := {(each.fingerprint, each.model) for _, each in answers} - self._recorded:
                self._database.executemany("INSERT OR IGNORE INTO fingerprints VALUES (?, ?)", new)
                self._recorded |= new

    def ended(self, job_ids: Iterable[str]) -> None:
        with database_errors(self._path), self._database:
            self._database.executemany("DELETE FROM jobs WHERE id = ?", [(job_id,) for job_id in job_ids])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._opened:
            worthless = not self.holds_anything
        if worthless:
            for name in (ANSWERS, JOURNAL):
                (self._path.parent / name).unlink(missing_ok=True)
