"""Reading a model's JSON files, and remembering which were read."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from impetus_backends.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

_MOST = 2**22
"""Of anything that a file counts, such as layers: what is made for each must not take all memory, or never end."""


class Reader:
    """Reads files and keeps their paths in `files`, in order: a fingerprint covers what was read, whatever it was."""

    def __init__(self) -> None:
        self.files: list[Path] = []

    def object(self, file: Path, *, known: Collection[str] | None = None) -> dict[str, Any]:
        """A file's JSON object. A key outside `known` is an error that names it: it may change every vector."""
        content: dict[str, Any] = read_json(file, dict)
        self.files.append(file)
        unknown = sorted(set(content) - set(known)) if known is not None else []
        if unknown:
            raise ModelError(f"{file}: {', '.join(unknown)} is not known here, and could change every vector")
        return content

    def optional(self, file: Path, *, known: Collection[str] | None = None) -> dict[str, Any]:
        """The same, or nothing where there is no such file."""
        return self.object(file, known=known) if file.is_file() else {}

    def array(self, file: Path) -> list[Any]:
        content: list[Any] = read_json(file, list)
        self.files.append(file)
        return content

    @contextmanager
    def of_known_kinds(self) -> Iterator[None]:
        """While files are read: a value of a kind that nobody looks for, as a list for a name, is an error that names
        the file read last."""
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            file = self.files[-1] if self.files else "modules.json"
            said = f"{type(error).__name__}: {error}"
            raise ModelError(f"{file} states a value of a kind that is not read there ({said:.200})") from error


def read_json(file: Path, kind: type[Any]) -> Any:
    """The content of a JSON file whose outermost value is of that kind; raises `ModelError` naming the file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{file} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, kind):
        raise ModelError(f"{file} does not hold a JSON {'object' if kind is dict else 'array'}")
    return content


def positive(file: Path, raw: dict[str, Any], key: str, default: int | None = None) -> int:
    """A count that a file states."""
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{file}: {key} is {value!r:.200}, not a positive number")
    if value > _MOST:
        raise ModelError(f"{file}: {key} is more than {_MOST:,}, which nothing here is")
    return value


def flag(file: Path, raw: dict[str, Any], key: str, default: bool) -> bool:
    """A yes or no that a file states."""
    value = raw.get(key, default)
    if not isinstance(value, bool):
        raise ModelError(f"{file}: {key} is {value!r}, neither true nor false")
    return value
