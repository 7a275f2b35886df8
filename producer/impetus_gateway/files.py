"""`/v1/files`: what batches are made of and come to, kept in the gateway's folder.

Source of the shapes: https://platform.openai.com/docs/api-reference/files
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse

from impetus_producer.batches.lines import MAX_BYTES
from impetus_producer.batches.store import BatchStore, NotKeptError

from .answers import json_answer
from .callers import Role
from .errors import HttpError, unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from starlette.datastructures import FormData
    from starlette.responses import Response
    from starlette.types import Message

    from .gateway import Call

T = TypeVar("T")
ENDPOINT = "/v1/files"
FILE = "/v1/files/{id}"
CONTENT = "/v1/files/{id}/content"
_AROUND_THE_FILE = 65_536
"""So many bytes of a form are not its file's."""
_PART = 1 << 20
_MOST_LISTED = 10_000
_MOST_FIELDS = 8
_MAX_NAME = 255


async def upload(call: Call) -> Response:
    """Keeps a form's `file`, whose `purpose` is `batch`."""
    store = store_of(call)
    with call.gateway.limits.place(call.caller):
        async with _form(call) as form:
            file = form.get("file")
            if form.get("purpose") != "batch":
                raise HttpError(400, "purpose: must be 'batch': files are for nothing else here", param="purpose")
            if not isinstance(file, UploadFile):
                raise HttpError(400, "file: must be a file", param="file")
            name = (file.filename or "upload.jsonl")[:_MAX_NAME]
            kept = await run_in_threadpool(store.add_file, _parts(file.file), name, "batch", call.caller.name)
    return json_answer(kept.shown())


@asynccontextmanager
async def _form(call: Call) -> AsyncIterator[FormData]:
    """The form that was sent; of a file in it the most lies on the disk."""
    if not call.request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HttpError(400, "a file is sent as multipart/form-data", code="invalid_form")
    try:
        async with asyncio.timeout(call.gateway.settings.request_timeout_s):
            form = await _bounded(call.request).form(max_files=1, max_fields=_MOST_FIELDS, max_part_size=4096)
    except TimeoutError:
        raise HttpError(408, "the file did not come in time", code="body_timeout") from None
    except HTTPException as error:
        raise HttpError(400, f"the body is no form: {error.detail}", code="invalid_form") from None
    try:
        yield form
    finally:
        await form.close()


def _bounded(request: Request) -> Request:
    """The request, whose body ends in a 413 beyond what a file may have."""
    most, came = MAX_BYTES + _AROUND_THE_FILE, 0
    said = request.headers.get("content-length", "0")
    too_large = HttpError(413, f"the file is larger than the {MAX_BYTES:,} bytes allowed", code="body_too_large")
    if not said.isdecimal() or int(said[:20]) > most:
        raise too_large

    async def receive() -> Message:
        nonlocal came
        message = await request.receive()
        came += len(message.get("body", b""))
        if came > most:
            raise too_large
        return message

    return Request(request.scope, receive)


def _parts(file: Any) -> Iterator[bytes]:
    file.seek(0)
    while part := file.read(_PART):
        yield part


async def listed(call: Call) -> Response:
    """The newest first, unless `order` says `asc`."""
    order = call.request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise HttpError(400, "order: must be 'asc' or 'desc'", param="order")
    found, more = await kept(
        store_of(call).files,
        after=call.request.query_params.get("after"),
        limit=limit_of(call, _MOST_LISTED),
        owner=seen_by(call),
        purpose=call.request.query_params.get("purpose"),
        oldest_first=order == "asc",
    )
    return json_answer(page([each.shown() for each in found], more))


async def show(call: Call) -> Response:
    found = await kept(store_of(call).file, _id(call), seen_by(call))
    return json_answer(found.shown())


async def delete(call: Call) -> Response:
    await kept(store_of(call).delete_file, _id(call), seen_by(call))
    return json_answer({"id": _id(call), "object": "file", "deleted": True})


async def content(call: Call) -> Response:
    """The file as it is."""
    found = await kept(store_of(call).file, _id(call), seen_by(call))
    file = await kept(store_of(call).open_file, _id(call), seen_by(call))

    def parts() -> Iterator[bytes]:
        with file:
            yield from _parts(file)

    return StreamingResponse(parts(), media_type="application/jsonl", headers={"Content-Length": str(found.bytes)})


def _id(call: Call) -> str:
    return str(call.request.path_params["id"])


# -- for batches too -------------------------------------------------------------------------------------------------


def store_of(call: Call) -> BatchStore:
    """Raises `HttpError` 503 where this gateway keeps no files."""
    if call.gateway.store is None:
        raise unavailable("this gateway keeps no files: it was started with --no-files", code="no_files")
    return call.gateway.store


def seen_by(call: Call) -> str | None:
    """Whose things the caller sees; None: everybody's."""
    return None if call.may(Role.OPERATE) else call.caller.name


async def kept(ask: Callable[..., T], *details: Any, **more: Any) -> T:
    """What a store answers, asked in a thread. Raises `HttpError` 404 for what is not there."""
    try:
        return await run_in_threadpool(ask, *details, **more)
    except NotKeptError as error:
        raise HttpError(404, str(error), code="not_found") from None


def limit_of(call: Call, most: int) -> int:
    """The query's `limit`. Raises `HttpError` 400."""
    said = call.request.query_params.get("limit", str(most))
    if not (said.isascii() and said.isdecimal() and len(said) < 7 and 1 <= int(said) <= most):
        raise HttpError(400, f"limit: must be a whole number from 1 to {most:,}", param="limit")
    return int(said)


def page(found: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    """One page of a list, as OpenAI's clients turn it."""
    return {
        "object": "list",
        "data": found,
        "first_id": found[0]["id"] if found else None,
        "last_id": found[-1]["id"] if found else None,
        "has_more": more,
    }
