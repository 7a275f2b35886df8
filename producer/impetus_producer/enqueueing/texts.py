"""Texts on their way into jobs: which are refused, and how many travel together.

Knows the contract. Knows no Redis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from .. import contract
from ..contract import EmbeddingRequest
from ..errors import InvalidRequestError
from .parsing import parse_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MOST_CHARACTERS = 32_000_000
"""Of texts that are held at once, here and in Redis."""
CHARACTERS_PER_JOB = 1_000_000
"""Jobs are closed early past this. Longer texts travel alone."""

ItemT = TypeVar("ItemT")


def text_refusal(text: str) -> str | None:
    """Why the contract does not take this text."""
    # Most texts are short ASCII, and asking the contract costs twenty times as much.
    if text.isascii() and len(text) <= contract.MAX_TEXT_BYTES:
        return None
    try:
        parse_request(EmbeddingRequest, {"input": text})
    except InvalidRequestError as error:
        return str(error).removeprefix("input: ")
    return None


def check_many(texts: Any, texts_per_job: Any, max_backlog_jobs: Any) -> None:
    """Raises `InvalidRequestError` for what is no iterable of texts, and for numbers that no run could have."""
    if isinstance(texts, str | bytes | bytearray) or not hasattr(texts, "__iter__"):
        raise InvalidRequestError(f"texts must be an iterable of strings, not a {type(texts).__name__}: give a list")
    for name, value, most in (
        ("texts_per_job", texts_per_job, contract.MAX_TEXTS_PER_JOB),
        ("max_backlog_jobs", max_backlog_jobs, None),
    ):
        if not isinstance(value, int) or value < 1 or (most is not None and value > most):
            limits = "at least 1" if most is None else f"from 1 to {most:,}"
            raise InvalidRequestError(f"{name} must be a whole number {limits}, not {value!r}")


def checked(texts: Iterable[Any]) -> Iterator[str]:
    """The texts, up to the first that no worker would take: raises `InvalidRequestError` with its place."""
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidRequestError(f"texts: item {index} is a {type(text).__name__}, not a string")
        if (reason := text_refusal(text)) is not None:
            raise InvalidRequestError(f"texts: item {index}: {reason}")
        yield text


def parts(items: Iterable[ItemT], size: int, most: int, weight: Callable[[ItemT], int]) -> Iterator[list[ItemT]]:
    """Lists of `size` items, or fewer where together they would weigh more than `most`."""
    part: list[ItemT] = []
    held = 0
    for item in items:
        weighs = weight(item)
        if part and (len(part) == size or held + weighs > most):
            yield part
            part, held = [], 0
        part.append(item)
        held += weighs
    if part:
        yield part


def characters(texts: Iterable[str]) -> int:
    return sum(map(len, texts))
