"""The gateway as an ASGI application: its endpoints, and what it has open while it serves."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from .api import batches, chats, completions, embeddings, files, health, jobs, models, ollama, openapi, reranking
from .entry.answers import error_answer
from .entry.callers import Role
from .entry.errors import HttpError
from .gateway import Door
from .seeing import dashboard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from .gateway import Call, Gateway

    Handler = Callable[[Call], Awaitable[Response]]

_FAREWELL_S = 5.0


def make_app(gateway: Gateway) -> Starlette:
    """The application of one gateway, whose producer it closes when it ends."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with gateway.producer:
            await gateway.watch.look()
            watching = asyncio.create_task(gateway.watch.run())
            gateway.batches.start()
            try:
                yield
            finally:
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
                await gateway.finish(_FAREWELL_S)
                await gateway.batches.stop()

    cors = Middleware(
        CORSMiddleware,
        allow_origins=gateway.settings.origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["X-Job-Id", "Retry-After", "Location"],
    )
    app = Starlette(
        routes=_routes(gateway),
        middleware=[cors] if gateway.settings.origins else [],
        exception_handlers={HTTPException: _not_served, Exception: _fault},
        lifespan=lifespan,
    )
    # It would send a key to wherever this thinks it is, in the clear where a proxy speaks TLS for it.
    app.router.redirect_slashes = False
    return app


def _routes(gateway: Gateway) -> list[Route]:
    def at(path: str, handler: Handler, role: Role | None, method: str = "GET", **more: bool) -> Route:
        return Route(path, Door(gateway, path, handler, role, **more), methods=[method])

    def post(path: str, handler: Handler) -> Route:
        return at(path, handler, Role.SUBMIT, "POST", limited=True, has_body=True)

    return [
        post(embeddings.ENDPOINT, embeddings.embeddings),
        post(chats.ENDPOINT, chats.chat),
        post(completions.ENDPOINT, completions.completions),
        post(reranking.ENDPOINT, reranking.rerank),
        post(reranking.COHERES, reranking.rerank),
        post(ollama.EMBED, ollama.embed),
        post(ollama.EMBEDDINGS, ollama.embeddings),
        post(batches.ENDPOINT, batches.create),
        at(batches.ENDPOINT, batches.listed, Role.READ),
        at(batches.BATCH, batches.show, Role.READ),
        at(batches.CANCEL, batches.cancel, Role.READ, "POST"),
        at(files.ENDPOINT, files.upload, Role.SUBMIT, "POST", limited=True),
        at(files.ENDPOINT, files.listed, Role.READ),
        at(files.FILE, files.show, Role.READ),
        at(files.FILE, files.delete, Role.SUBMIT, "DELETE"),
        at(files.CONTENT, files.content, Role.READ),
        at(models.ENDPOINT, models.listed, Role.SUBMIT),
        at(models.MODEL, models.one, Role.SUBMIT),
        at(jobs.EVENTS, jobs.events, Role.READ, limited=True),
        at(jobs.RETRY, jobs.again, Role.OPERATE, "POST"),
        at(jobs.ENDPOINT, jobs.show, Role.READ),
        at(jobs.ENDPOINT, jobs.cancel, Role.READ, "DELETE"),
        at(health.HEALTH, health.health, None),
        at(health.READY, health.ready, None),
        at(health.METRICS, health.metrics, Role.OPERATE),
        at(openapi.ENDPOINT, openapi.document, None),
        at(dashboard.PAGE, dashboard.page, None),
        at(dashboard.FILE, dashboard.file, None),
        at(dashboard.EVENTS, dashboard.events, Role.OPERATE, limited=True),
        at(dashboard.SUSPEND, dashboard.suspend, Role.OPERATE, "POST"),
        at(dashboard.RESUME, dashboard.resume, Role.OPERATE, "POST"),
    ]


async def _not_served(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = {404: f"there is nothing at {request.url.path[:200]!r}", 405: f"{request.method} is not for this place"}
    said = HttpError(error.status_code, sentence.get(error.status_code, error.detail), headers=error.headers)
    return error_answer(said, request.url.path)


async def _fault(request: Request, error: Exception) -> Response:
    """Starlette logs it with its trace."""
    return error_answer(HttpError(500, "the gateway has a fault, which its log shows", code="fault"), request.url.path)
