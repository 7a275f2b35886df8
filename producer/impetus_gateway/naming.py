"""Jobs that their callers name, which are one however often and through whichever gateway they are sent.

`Idempotency-Key` names a request of one caller to one endpoint, whatever its job is called. `X-Job-Id` is the job's own
id: the same for all callers, and in Redis.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from impetus_producer.watching.records import read_record

from .entry.errors import HttpError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .gateway import Call

KEY, JOB_ID = "Idempotency-Key", "X-Job-Id"
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What RQ takes for one."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a caller named a request. `header`: by which; None where it did not."""

    header: str | None = None
    value: str = ""

    @property
    def is_given(self) -> bool:
        return self.header is not None

    def job_ids(self, call: Call, endpoint: str, queue: str, count: int) -> list[str]:
        """Of the jobs of this request, of which there are so many, for a queue. Raises `HttpError` 400."""
        if not self.is_given:
            return [call.gateway.new_id(queue) for _ in range(count)]
        if self.header == JOB_ID:
            if count > 1:
                raise HttpError(400, f"{JOB_ID} names one job: send one prompt", param=JOB_ID, code="bad_header")
            return [self.value]
        named = "\0".join((call.caller.name, endpoint, self.value))
        return [_hashed(named.encode() + b"\0%d" % at if at else named.encode())[:32] for at in range(count)]


def name_of(call: Call) -> Name:
    """Raises `HttpError` 400 for a name that cannot be one."""
    key, job_id = (call.request.headers.get(header.lower()) for header in (KEY, JOB_ID))
    if key is not None and job_id is not None:
        raise HttpError(400, f"{KEY} and {JOB_ID} name the same twice: send one", param=JOB_ID, code="bad_header")
    if job_id is not None:
        if not _JOB_ID.fullmatch(job_id):
            sentence = f"an {JOB_ID} is 1 to 64 letters, digits, '-' and '_'"
            raise HttpError(400, sentence, param=JOB_ID, code="bad_header")
        return Name(JOB_ID, job_id)
    if key is not None:
        if not _KEY.fullmatch(key):
            sentence = f"an {KEY} is 1 to 255 visible ASCII characters"
            raise HttpError(400, sentence, param=KEY, code="bad_header")
        return Name(KEY, key)
    return Name()


def digest_of(call: Call, endpoint: str, payloads: Sequence[Mapping[str, Any]]) -> str:
    """The same for the same request of the same caller."""
    what = to_json([dict(sorted(each.items())) for each in payloads])
    return _hashed(b"\0".join((call.caller.name.encode(), endpoint.encode(), what)))


async def check_same(call: Call, name: Name, job_ids: Iterable[str], digest: str) -> None:
    """Raises `HttpError`, 409 or 422, where a job that is there is of another request."""
    for job_id in job_ids:
        record = await call.gateway.ask(read_record, job_id)
        if record is None or record.meta.get("digest") == digest:
            continue
        if name.header == JOB_ID:
            raise HttpError(409, "there is another job of this id", param=JOB_ID, code="job_id_taken")
        sentence = f"this {KEY} came with another request before"
        raise HttpError(422, sentence, param=KEY, code="idempotency_key_reused")


def _hashed(named: bytes) -> str:
    return hashlib.sha256(named).hexdigest()
