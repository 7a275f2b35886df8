"""Where this package keeps what it can make again, and how a file gets there whole."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

CACHE_VARIABLE = "IMPETUS_CACHE_DIR"


def cache_folder(environment: Mapping[str, str] | None = None, system: str = sys.platform) -> Path:
    """IMPETUS_CACHE_DIR, or the place of this system: ~/Library/Caches/impetus, $XDG_CACHE_HOME or ~/.cache/impetus.

    It need not exist yet.
    """
    environment = os.environ if environment is None else environment
    if own := environment.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    if system == "darwin":
        return Path("~/Library/Caches/impetus").expanduser()
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "impetus"


def write_whole(file: Path, content: str) -> None:
    """Writes the file so that a reader sees the old content or the new, and nothing between; raises `OSError`.

    Only its owner may read it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(content)
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
