"""`/v1/models`: what the workers that serve now say that they serve."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from impetus_producer import contract

from ..entry.answers import json_answer
from ..entry.errors import HttpError

if TYPE_CHECKING:
    from starlette.responses import Response

    from ..gateway import Call
    from ..seeing.watch import Watch

ENDPOINT = "/v1/models"
MODEL = "/v1/models/{id:path}"


async def listed(call: Call) -> Response:
    return json_answer({"object": "list", "data": _models(call.gateway.watch)})


async def one(call: Call) -> Response:
    name = str(call.request.path_params["id"])
    for model in _models(call.gateway.watch):
        if name == model["id"] or name in model["aliases"]:
            return json_answer(model)
    raise HttpError(404, f"there is no model {name!r:.200} here", param="model", code="model_not_found")


def _models(watch: Watch) -> list[dict[str, Any]]:
    """Each by the name that its worker gives it first."""
    found: dict[str, dict[str, Any]] = {}
    for role, (queue, _) in contract.ROLE_QUEUES.items():
        for worker in watch.serving(queue):
            of_others = {alias for other in worker.more_models for alias in (other.name, *other.aliases)}
            own = contract.ServedModel(name=worker.model, aliases=tuple({*worker.aliases} - of_others))
            for model in (own, *worker.more_models) if worker.model else ():
                aliases = found.get(model.name, {}).get("aliases", [])
                found[model.name] = {
                    "id": model.name,
                    "object": "model",
                    "created": _seconds(worker.since),
                    "owned_by": "impetus",
                    "role": role,
                    "aliases": sorted({*aliases, *model.aliases} - {model.name}),
                }
    return [found[name] for name in sorted(found)]


def _seconds(since: str) -> int:
    try:
        return int(datetime.fromisoformat(since).timestamp())
    except (ValueError, OverflowError):
        return 0
