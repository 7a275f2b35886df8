"""Where the server is: the note that `impetus-worker run` leaves for other programs on this machine.

Knows files and environment variables, and nothing of Redis beyond a URL.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

REDIS_URL_VARIABLE = "IMPETUS_REDIS_URL"
STATE_DIR_VARIABLE = "IMPETUS_STATE_DIR"


def state_dir() -> Path:
    """The folder for what outlives a run: `IMPETUS_STATE_DIR`, else the platform's usual place."""
    if chosen := os.environ.get(STATE_DIR_VARIABLE):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "impetus"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "impetus"


def write_secret(path: Path, text: str) -> None:
    """Writes a file whole or not at all, readable by this user alone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)


@dataclass(frozen=True, slots=True)
class ServerNote:
    """Says that process `pid` keeps a server at `url`, and how: who keeps it next keeps it so."""

    url: str
    pid: int
    durable: bool = False
    listen: str = ""

    @staticmethod
    def path(folder: Path | None = None) -> Path:
        return (folder or state_dir()) / "server.json"

    def write(self, folder: Path | None = None) -> None:
        """Leaves the note whole or not at all, readable by this user alone."""
        write_secret(self.path(folder), json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path | None = None) -> ServerNote | None:
        """The note, if there is one and the process that wrote it still lives."""
        try:
            fields = json.loads(cls.path(folder).read_text())
            durable, listen = bool(fields.get("durable")), str(fields.get("listen", ""))
            note = cls(str(fields["url"]), int(fields["pid"]), durable, listen)
            os.kill(note.pid, 0)
        except PermissionError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return note

    @classmethod
    def remove(cls, folder: Path | None = None) -> None:
        cls.path(folder).unlink(missing_ok=True)


def find_redis_url(given: str | None = None) -> str | None:
    """The server to use: the one given, `IMPETUS_REDIS_URL`, or the one whose note lies in the state folder."""
    if url := given or os.environ.get(REDIS_URL_VARIABLE):
        return url
    note = ServerNote.read()
    return note.url if note else None


def find_redis_urls(given: Sequence[str] = ()) -> tuple[str, ...]:
    """The same for who may use several: in the variable they stand with white space between. None: there is none."""
    if given:
        return tuple(given)
    url = find_redis_url()
    return () if url is None else tuple(url.split())
