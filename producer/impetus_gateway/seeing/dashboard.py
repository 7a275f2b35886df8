"""The dashboard at `/`: its three files, what they show, and what an operator does there."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.responses import Response

from impetus_producer.operations import resume as resume_workers
from impetus_producer.operations import suspend as suspend_workers

from ..entry.answers import json_answer
from ..entry.errors import HttpError
from ..events import EventStream, event, told

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ..gateway import Call

PAGE, FILE = "/", "/dashboard/{name}"
EVENTS, SUSPEND, RESUME = "/v1/fleet/events", "/v1/fleet/suspend", "/v1/fleet/resume"
_TYPES = {"dashboard.css": "text/css", "dashboard.js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


async def page(call: Call) -> Response:
    return _file("index.html", "text/html")


async def file(call: Call) -> Response:
    name = str(call.request.path_params["name"])
    if name not in _TYPES:
        raise HttpError(404, "there is no such file", code="not_found")
    return _file(name, _TYPES[name])


def _file(name: str, kind: str) -> Response:
    content = files("impetus_gateway.seeing").joinpath("static", name).read_bytes()
    return Response(content, headers=_HEADERS, media_type=kind)


async def events(call: Call) -> Response:
    """Server-sent events: the overview, about once a second."""
    return EventStream(told(_overviews(call), "error"), call.gateway.settings.ping_s)


async def _overviews(call: Call) -> AsyncGenerator[bytes, None]:
    while not call.gateway.is_leaving():
        yield event(await call.gateway.overview.now(), "overview")
        await call.gateway.watch.next_look()


async def suspend(call: Call) -> Response:
    """Workers finish what they run and take nothing."""
    await call.gateway.have_all(suspend_workers)
    return json_answer({"suspended": True})


async def resume(call: Call) -> Response:
    await call.gateway.have_all(resume_workers)
    return json_answer({"suspended": False})
