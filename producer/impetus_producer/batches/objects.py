"""Files and batches as OpenAI's API shows them, and as they are kept.

Source: https://platform.openai.com/docs/api-reference/files/object and .../batch/object
"""

from __future__ import annotations

import re
import time
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import to_json

from ..errors import InvalidRequestError

Status: TypeAlias = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
]
OVER: frozenset[Status] = frozenset({"completed", "failed", "expired", "cancelled"})
"""A batch in one of these changes no more."""
MAX_WINDOW_S = 30 * 24 * 3600
_WINDOW = re.compile(r"([1-9][0-9]{0,4})([mhd])")
_UNIT_S = {"m": 60, "h": 3600, "d": 24 * 3600}

Metadata: TypeAlias = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=16),
]


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    owner: str = Field(default="", exclude=True)
    """Whose it is; not shown."""

    def shown(self) -> dict[str, Any]:
        """As OpenAI's API shows it."""
        return self.model_dump(mode="json")

    def kept(self) -> bytes:
        """As it lies on the disk."""
        hidden = {name: getattr(self, name) for name, field in type(self).model_fields.items() if field.exclude}
        return to_json({**self.shown(), **hidden})


class FileObject(_Kept):
    """`bytes`: its size."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    expires_at: int | None = None
    """None: it stays until it is deleted."""

    @property
    def expired(self) -> bool:
        return self.expires_at is not None and time.time() >= self.expires_at


class ExpiresAfter(BaseModel):
    """How long a file stays, as OpenAI's API says it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=MAX_WINDOW_S)]


class RequestCounts(BaseModel):
    model_config = ConfigDict(frozen=True)

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchError(BaseModel):
    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(BaseModel):
    model_config = ConfigDict(frozen=True)

    object: Literal["list"] = "list"
    data: list[BatchError]


class Batch(_Kept):
    """Times in seconds since 1970."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: Status = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    metadata: Metadata | None = None
    output_expires_after_s: int | None = Field(default=None, exclude=True)
    """Not shown, as in OpenAI's API."""

    @property
    def over(self) -> bool:
        return self.status in OVER

    def now(self, status: Status, **changes: Any) -> Batch:
        """The batch once it has come to this, at this time."""
        return self.model_copy(update={"status": status, f"{status}_at": int(time.time()), **changes})


def window_s(completion_window: str) -> int:
    """A number of minutes, hours or days, as `24h`. Raises `InvalidRequestError`."""
    match = _WINDOW.fullmatch(completion_window)
    seconds = int(match[1]) * _UNIT_S[match[2]] if match is not None else 0
    if not 0 < seconds <= MAX_WINDOW_S:
        raise InvalidRequestError(
            "completion_window: must be minutes, hours or days up to 30d, such as 24h", field="completion_window"
        )
    return seconds
