"""Files in which an operator lists whom a gateway knows, as TOML: keys, and who is told of batches."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from impetus_producer.enqueueing.parsing import first_sentence
from impetus_producer.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ModelT = TypeVar("ModelT", bound=BaseModel)


def read_listed(path: Path, model: type[ModelT], what: str) -> ModelT:
    """Raises `InvalidRequestError` for a file that is none of `what`."""
    try:
        return model.model_validate(tomllib.loads(path.read_text()))
    except (OSError, ValueError) as error:
        why = first_sentence(error) if isinstance(error, ValidationError) else str(error)
        raise InvalidRequestError(f"{path} cannot be read as a file of {what}: {why}") from None


def add_listed(path: Path, entry: str, check: Callable[[Path], object]) -> None:
    """Adds an entry to a file, which only its owner can read, unless `check` raises for what that would become."""
    before = path.read_text() if path.exists() else ""
    draft = path.with_name(path.name + ".new")
    draft.touch(mode=0o600)
    try:
        draft.write_text(f"{before.rstrip()}\n\n{entry}".lstrip())
        check(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
