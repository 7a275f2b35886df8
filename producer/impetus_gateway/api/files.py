"""`/v1/files`: the inputs and outputs of batches. Source: https://platform.openai.com/docs/api-reference/files"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from impetus_producer.batches.lines import MAX_BYTES
from impetus_producer.batches.objects import ExpiresAfter
from impetus_producer.enqueueing.parsing import first_complaint

from ..entry.answers import json_answer
from ..entry.callers import Role
from ..entry.errors import HttpError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from typing import BinaryIO

    from starlette.datastructures import FormData
    from starlette.types import Message

    from ..gateway import Call

ENDPOINT, FILE, CONTENT = "/v1/files", "/v1/files/{id}", "/v1/files/{id}/content"
_MOST_LISTED = 10_000
_FORM_BYTES = 100_000
"""What a form may be larger than the file in it."""
_CHUNK_BYTES = 1_000_000


async def upload(call: Call) -> Response:
    """Keeps a file, which is written as it comes."""
    try:
        async with asyncio.timeout(call.gateway.settings.request_timeout_s):
            async with _bounded(call.request).form(max_files=1, max_fields=10) as form:
                return await _kept(call, form)
    except TimeoutError:
        raise HttpError(408, "the file did not come in time", code="body_timeout") from None
    except (MultiPartException, HTTPException) as error:
        said = error.message if isinstance(error, MultiPartException) else error.detail
        raise HttpError(400, f"the body is no form with a file: {said}", code="invalid_form") from None


async def _kept(call: Call, form: FormData) -> Response:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise HttpError(400, "file: this field is required", param="file", code="missing_required_parameter")
    if form.get("purpose") != "batch":
        raise HttpError(400, "purpose: must be batch", param="purpose", code="invalid_value")
    content = iter(lambda: file.file.read(_CHUNK_BYTES), b"")
    kept = await asyncio.to_thread(
        call.gateway.batches.store.add_file, content, file.filename or "", "batch", call.caller.name, _expiry(form)
    )
    return json_answer(kept.shown())


def _expiry(form: FormData) -> int | None:
    """`expires_after[anchor]` and `expires_after[seconds]`, as OpenAI's clients send them."""
    prefix = "expires_after["
    said = {name.removeprefix(prefix).removesuffix("]"): form[name] for name in form if name.startswith(prefix)}
    if not said:
        return None
    try:
        return ExpiresAfter.model_validate_strings(said).seconds
    except ValidationError as error:
        field, problem, code = first_complaint(error)
        param = f"expires_after.{field}"
        raise HttpError(400, f"{param}: {problem}", param=param, code=code) from None


def _bounded(request: Request) -> Request:
    """The same, whose body is refused where it is too large, however much of it is announced."""
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > MAX_BYTES + _FORM_BYTES:
            raise HttpError(413, f"the file is larger than the {MAX_BYTES:,} bytes allowed", code="body_too_large")
        return message

    return Request(request.scope, receive)


async def listed(call: Call) -> Response:
    """`limit`, `after`, `order` and `purpose`, as in OpenAI's API."""
    query = call.request.query_params
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise HttpError(400, "order: must be asc or desc", param="order", code="invalid_value")
    found, more = await asyncio.to_thread(
        call.gateway.batches.store.files,
        after=query.get("after"),
        limit=limit_of(call, _MOST_LISTED),
        owner=owner_of(call),
        purpose=query.get("purpose"),
        oldest_first=order == "asc",
    )
    return page([each.shown() for each in found], more)


async def show(call: Call) -> Response:
    kept = await asyncio.to_thread(call.gateway.batches.store.file, id_of(call), owner_of(call))
    return json_answer(kept.shown())


async def delete(call: Call) -> Response:
    await asyncio.to_thread(call.gateway.batches.store.delete_file, id_of(call), owner_of(call))
    return json_answer({"id": id_of(call), "object": "file", "deleted": True})


async def content(call: Call) -> Response:
    store = call.gateway.batches.store
    kept = await asyncio.to_thread(store.file, id_of(call), owner_of(call))
    file = await asyncio.to_thread(store.open_file, id_of(call), owner_of(call))
    headers = {"Content-Length": str(kept.bytes), "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(_chunks(file), headers=headers, media_type="application/octet-stream")


async def _chunks(file: BinaryIO) -> AsyncGenerator[bytes, None]:
    with file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            yield chunk


def id_of(call: Call) -> str:
    return str(call.request.path_params["id"])


def owner_of(call: Call) -> str | None:
    """Whose things a caller sees; None: everybody's."""
    return None if call.may(Role.OPERATE) else call.caller.name


def limit_of(call: Call, most: int, usual: int | None = None) -> int:
    """The query's `limit`. Raises `HttpError` 400."""
    said = call.request.query_params.get("limit")
    if said is None:
        return usual or most
    if not (said.isascii() and said.isdecimal() and len(said) < 6 and 1 <= int(said) <= most):
        raise HttpError(400, f"limit: must be a number from 1 to {most}", param="limit", code="invalid_value")
    return int(said)


def page(shown: list[dict[str, Any]], more: bool) -> Response:
    """A page of a list, with where it ends."""
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return json_answer({"object": "list", "data": shown, **ends, "has_more": more})
