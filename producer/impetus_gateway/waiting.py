"""What `Prefer: respond-async` is answered with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .answers import json_answer

if TYPE_CHECKING:
    from starlette.responses import Response


def accepted(job_id: str) -> Response:
    """202: the job's place, where to look for its result."""
    place = f"/v1/jobs/{job_id}"
    return json_answer(
        {"id": job_id, "object": "job", "status": "queued", "url": place},
        202,
        {"Location": place, "Preference-Applied": "respond-async", "X-Job-Id": job_id},
    )
