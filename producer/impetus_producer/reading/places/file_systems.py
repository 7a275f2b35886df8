"""The file systems of other machines, by their URLs: fsspec, and what all that it raises comes to.

Whatever a file system raises is an `OSError` from here on, as of a local file.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...errors import ImpetusError, InvalidRequestError, MissingExtraError
from ...shown import without_password

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_CHARACTERS = 200


def open_file_system(url: str, purpose: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    `purpose`: what for, for the `MissingExtraError` where fsspec is not installed. Raises `InvalidRequestError` for a
    URL of which it knows nothing, or whose package is not installed, and `OSError`.
    """
    try:
        from fsspec import url_to_fs
    except ImportError:
        raise MissingExtraError(purpose, "remote") from None
    with as_os_errors():
        try:
            system, path = url_to_fs(url)
        except (ValueError, ImportError) as error:
            missing = "something that is not installed: " if isinstance(error, ImportError) else ""
            raise InvalidRequestError(
                f"{without_password(url)!r} is no place for files: {missing}{_said(error)}"
            ) from None
    return system, path


@contextmanager
def as_os_errors() -> Iterator[None]:
    """What is asked of a file system."""
    try:
        yield
    except (OSError, ImpetusError):
        raise
    except Exception as error:  # each file system has errors of its own, of whatever kind
        raise OSError(_said(error) or type(error).__name__) from error


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:_MOST_CHARACTERS].rstrip(".")
