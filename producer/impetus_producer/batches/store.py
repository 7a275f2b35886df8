"""Files and batches in a folder, shared by whoever serves and runs them.

    files/<id>.json     a file's object          files/<id>.data     its content, unless contents lie elsewhere
    batches/<id>.json   a batch's object         batches/<id>/       what its runner writes

Each appears whole or not at all. A batch's object is changed under a lock, as a runner and who cancels may both do so.
"""

from __future__ import annotations

import fcntl
import re
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from ..errors import ImpetusError, InvalidRequestError
from ..shown import name_shown
from .contents import Contents, FolderContents, RemoteContents
from .disk import write_whole
from .endpoints import ENDPOINTS
from .lines import MAX_BYTES
from .objects import Batch, FileObject, Metadata, window_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import BinaryIO

    from .objects import _Kept

KeptT = TypeVar("KeptT", bound="_Kept")
_ID = re.compile(r"(file-|batch_)[0-9a-f]{32}")
_MOST_LISTED = 100
_METADATA: TypeAdapter[Any] = TypeAdapter(Metadata)


class NotKeptError(ImpetusError):
    """There is no such file or batch, or it is somebody else's."""


class BatchStore:
    """`folder` is made where it is not there. `contents_url`: where the contents of files lie, for fsspec; none means
    in the folder. `owner`: whose things are seen; None means everybody's.

    Raises `NotKeptError` for an id that is not there, `InvalidRequestError` for what cannot be.
    """

    def __init__(self, folder: Path | str, contents_url: str | None = None) -> None:
        self.folder = Path(folder)
        self._files = self.folder / "files"
        self._batches = self.folder / "batches"
        for each in (self._files, self._batches):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._contents: Contents = (
            FolderContents(self._files) if contents_url is None else RemoteContents(contents_url, self._files)
        )
        self._over: set[str] = set()
        """What is over stays so, and need not be read again."""
        self._expiries: dict[str, int | None] = {}
        """When each file expires, which does not change."""

    # -- files ---------------------------------------------------------------------------------------------------------

    def add_file(
        self,
        content: Iterable[bytes],
        filename: str,
        purpose: str = "batch",
        owner: str = "",
        expires_after_s: int | None = None,
    ) -> FileObject:
        """Keeps a file, of which at most `MAX_BYTES` are taken."""
        file_id = _new_id("file-")
        draft = self._files / f"{file_id}.part"
        size = 0
        try:
            with draft.open("xb") as file:
                for part in content:
                    size += len(part)
                    if size > MAX_BYTES:
                        raise InvalidRequestError(f"file: is larger than {MAX_BYTES:,} bytes", field="file")
                    file.write(part)
            return self._adopt(draft, file_id, filename, purpose, owner, expires_after_s)
        finally:
            draft.unlink(missing_ok=True)

    def _adopt(
        self, path: Path, file_id: str, filename: str, purpose: str, owner: str, expires_after_s: int | None
    ) -> FileObject:
        """Makes a file of one that lies in this folder, whole. The same when it is done again after a crash.

        Raises `FileNotFoundError` where there is none, and was none.
        """
        if path.exists():
            self._contents.adopt(path, _content(file_id))
        now = int(time.time())
        kept = FileObject(
            id=file_id, bytes=self._contents.size(_content(file_id)), created_at=now, filename=filename,
            purpose=purpose, expires_at=None if expires_after_s is None else now + expires_after_s, owner=owner,
        )  # fmt: skip
        write_whole(self._files / f"{file_id}.json", kept.kept())
        return kept

    def file(self, file_id: str, owner: str | None = None) -> FileObject:
        file = _read(self._files, file_id, FileObject, owner)
        if file.expired:
            raise _not_kept(FileObject, file_id)
        return file

    def open_file(self, file_id: str, owner: str | None = None) -> BinaryIO:
        """Its content."""
        self.file(file_id, owner)
        return self._opened(file_id)

    def open_input(self, batch: Batch) -> BinaryIO:
        """That of a batch, which keeps it from expiring until it is over."""
        return self._opened(batch.input_file_id)

    def _opened(self, file_id: str) -> BinaryIO:
        try:
            return self._contents.open(_content(file_id))
        except FileNotFoundError:
            raise _not_kept(FileObject, file_id) from None

    def delete_file(self, file_id: str, owner: str | None = None) -> None:
        """A batch that runs keeps reading one that it has opened; one that was not begun fails."""
        self.file(file_id, owner)
        self._delete(file_id)

    def _delete(self, file_id: str) -> None:
        (self._files / f"{file_id}.json").unlink(missing_ok=True)
        self._contents.delete(_content(file_id))

    def delete_expired(self) -> None:
        """Frees the room of files that have expired, but those that a batch is still to read."""
        there = {path.stem for path in self._files.glob("file-*.json")}
        for file_id in there - self._expiries.keys():
            with suppress(NotKeptError):
                self._expiries[file_id] = _read(self._files, file_id, FileObject, None).expires_at
        self._expiries = {file_id: at for file_id, at in self._expiries.items() if file_id in there}
        now = time.time()
        if expired := [file_id for file_id, at in self._expiries.items() if at is not None and now >= at]:
            read = {self.batch(batch_id).input_file_id for batch_id in self.unfinished()}
            for file_id in expired:
                if file_id not in read:
                    self._delete(file_id)

    def files(
        self,
        *,
        after: str | None = None,
        limit: int = _MOST_LISTED,
        owner: str | None = None,
        purpose: str | None = None,
        oldest_first: bool = False,
    ) -> tuple[list[FileObject], bool]:
        """The newest first, beginning behind `after`; and whether there are more."""

        def wanted(file: FileObject) -> bool:
            return not file.expired and purpose in (None, file.purpose)

        return _listed(self._files, FileObject, after, limit, owner, wanted, oldest_first)

    # -- batches -------------------------------------------------------------------------------------------------------

    def add_batch(
        self,
        input_file_id: str,
        endpoint: str,
        completion_window: str = "24h",
        metadata: dict[str, str] | None = None,
        owner: str = "",
        output_expires_after_s: int | None = None,
    ) -> Batch:
        """A batch that whoever runs batches of this folder will take up. `owner` must have the file."""
        if endpoint not in ENDPOINTS:
            raise InvalidRequestError(f"endpoint: must be one of {', '.join(ENDPOINTS)}", field="endpoint")
        seconds = window_s(completion_window)
        try:
            _METADATA.validate_python(metadata or {}, strict=True)
        except ValidationError:
            sentence = "metadata: must be at most 16 texts of 512 characters, by names of 64"
            raise InvalidRequestError(sentence, field="metadata") from None
        self.file(input_file_id, owner or None)
        now = int(time.time())
        batch = Batch(
            id=_new_id("batch_"), endpoint=endpoint, input_file_id=input_file_id, completion_window=completion_window,
            created_at=now, expires_at=now + seconds, metadata=metadata, owner=owner,
            output_expires_after_s=output_expires_after_s,
        )  # fmt: skip
        (self._batches / batch.id).mkdir()
        write_whole(self._batches / f"{batch.id}.json", batch.kept())
        return batch

    def batch(self, batch_id: str, owner: str | None = None) -> Batch:
        return _read(self._batches, batch_id, Batch, owner)

    def batches(
        self, *, after: str | None = None, limit: int = _MOST_LISTED, owner: str | None = None
    ) -> tuple[list[Batch], bool]:
        """The newest first, beginning behind `after`; and whether there are more."""
        return _listed(self._batches, Batch, after, limit, owner)

    def cancel_batch(self, batch_id: str, owner: str | None = None) -> Batch:
        """Whoever runs it sees to it within seconds. One that is over stays as it is."""
        self.batch(batch_id, owner)
        return self.change(
            batch_id, lambda batch: batch.now("cancelling") if batch.status in ("validating", "in_progress") else batch
        )

    def change(self, batch_id: str, change: Callable[[Batch], Batch]) -> Batch:
        """Changes a batch in one step, and returns it."""
        with self._locked(batch_id):
            before = self.batch(batch_id)
            after = change(before)
            if after != before:
                write_whole(self._batches / f"{batch_id}.json", after.kept())
            return after

    def unfinished(self) -> list[str]:
        """The batches that are not over, the oldest first."""
        found = []
        for path in sorted(self._batches.glob("batch_*.json")):
            if path.stem in self._over:
                continue
            with suppress(NotKeptError):
                if self.batch(path.stem).over:
                    self._over.add(path.stem)
                else:
                    found.append(path.stem)
        return found

    def workplace(self, batch_id: str) -> Path:
        """A folder for what the batch's runner writes."""
        return self._batches / batch_id

    def keep_answers(self, batch: Batch, path: Path, kind: str) -> str | None:
        """Makes a file of what a runner wrote, with the same id whenever it is asked. None where it wrote nothing."""
        file_id = f"file-{_digest(batch.id, kind)}"
        name, expiry = f"{batch.id}_{kind}.jsonl", batch.output_expires_after_s
        try:
            return self._adopt(path, file_id, name, "batch_output", batch.owner, expiry).id
        except FileNotFoundError:
            return None

    @contextmanager
    def _locked(self, batch_id: str) -> Iterator[None]:
        self.batch(batch_id)
        with (self._batches / batch_id / "object.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _new_id(prefix: str) -> str:
    """Sorted by their ids, things are sorted by when they were made."""
    return f"{prefix}{time.time_ns():016x}{uuid4().hex[:16]}"


def _digest(batch_id: str, kind: str) -> str:
    """Sorted beside its batch."""
    return batch_id.removeprefix("batch_")[:24] + {"output": "0" * 8, "errors": "1" * 8}[kind]


def _content(file_id: str) -> str:
    return f"{file_id}.data"


def _read(folder: Path, kept_id: str, kind: type[KeptT], owner: str | None) -> KeptT:
    if _ID.fullmatch(kept_id):
        with suppress(FileNotFoundError):
            kept = kind.model_validate_json((folder / f"{kept_id}.json").read_bytes())
            if owner in (None, kept.owner):
                return kept
    raise _not_kept(kind, kept_id)


def _not_kept(kind: type[_Kept], kept_id: str) -> NotKeptError:
    what = kind.__name__.removesuffix("Object").lower()
    return NotKeptError(f"there is no {what} {name_shown(kept_id)!r}")


def _listed(
    folder: Path,
    kind: type[KeptT],
    after: str | None,
    limit: int,
    owner: str | None,
    wanted: Callable[[KeptT], bool] | None = None,
    oldest_first: bool = False,
) -> tuple[list[KeptT], bool]:
    ids = sorted((path.stem for path in folder.glob("*.json") if _ID.fullmatch(path.stem)), reverse=not oldest_first)
    if after is not None:
        _read(folder, after, kind, owner)
        ids = [each for each in ids if (each > after) == oldest_first and each != after]
    found: list[KeptT] = []
    for each in ids:
        with suppress(NotKeptError):
            kept = _read(folder, each, kind, owner)
            if wanted is None or wanted(kept):
                found.append(kept)
        if len(found) > limit:
            return found[:limit], True
    return found, False
