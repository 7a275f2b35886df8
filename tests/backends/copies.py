"""Models as they lie in tests/data, with something else in a file."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def changed(model: Path, folder: Path, file: str = "config.json", **keys: Any) -> Path:
    """A copy of a model in `folder`, with other keys in a file; None takes one away."""
    shutil.copytree(model, folder)
    path = folder / file
    content = (json.loads(path.read_text()) if path.exists() else {}) | keys
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder
