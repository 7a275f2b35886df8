"""`/health`, `/ready` and `/metrics`: for whoever watches the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from impetus_producer import contract

from ..entry.answers import json_answer
from ..entry.errors import HttpError
from ..seeing.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from ..gateway import Call

HEALTH, READY, METRICS = "/health", "/ready", "/metrics"


async def health(call: Call) -> Response:
    """That it lives, and nothing of what is behind it."""
    return json_answer({"status": "ok"})


async def ready(call: Call) -> Response:
    """200 where a worker serves the role of `?role=`, or any of them where none is named."""
    asked = call.request.query_params.get("role")
    if asked is not None and asked not in contract.ROLE_QUEUES:
        raise HttpError(400, f"there is no role {asked!r:.100}", param="role", code="invalid_value")
    serving = {role: call.gateway.watch.is_served(queues[0]) for role, queues in contract.ROLE_QUEUES.items()}
    is_ready = serving[asked] if asked is not None else any(serving.values())
    return json_answer({"ready": is_ready, **serving}, 200 if is_ready else 503)


async def metrics(call: Call) -> Response:
    return Response(call.gateway.metrics.exposition(), media_type=CONTENT_TYPE)
