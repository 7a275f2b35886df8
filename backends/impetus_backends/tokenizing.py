"""The library that reads tokenizers, at a version that was tried."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from impetus_backends.errors import ModelError

OLDEST_TRANSFORMERS = (5, 23)
"""The oldest version that was tried: 5.10 reads some tokenizers wrongly, and says nothing."""


def import_transformers() -> Any:
    """The module. Raises `ModelError` where it is not installed, or older than what was tried."""
    # It says on stderr that torch is not there, which is none of a worker's troubles.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            f"reading a tokenizer needs a package ({error}): pip install 'impetus-batch[worker]'"
        ) from error
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if version < OLDEST_TRANSFORMERS:
        raise ModelError(
            f"transformers {transformers.__version__} reads some tokenizers wrongly: "
            f"pip install 'transformers>={'.'.join(map(str, OLDEST_TRANSFORMERS))}'"
        )
    _look_through_models_once()
    return transformers


def _look_through_models_once() -> None:
    """transformers reads the files of all its models when it is imported, and again with the first of them, which takes
    a quarter of a second: it keeps what it read by path, and asks by the folder's and then by its `__init__.py`'s."""
    from transformers.utils import import_utils

    read: Any = getattr(import_utils, "create_import_structure_from_path", None)
    if not hasattr(read, "cache_info"):
        return  # done before, or another version

    def read_once(path: str | Path) -> Any:
        return read(Path(path).parent if Path(path).name == "__init__.py" else path)

    import_utils.create_import_structure_from_path = read_once
