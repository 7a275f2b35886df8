"""The OpenAPI document, made of the models that requests are held against."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from impetus_producer import contract
from impetus_producer.batches.objects import MAX_WINDOW_S
from impetus_producer.bodies.completions import CompletionsBody
from impetus_producer.bodies.embeddings import EmbeddingsBody
from impetus_producer.bodies.reranking import RerankBody
from impetus_producer.contract import GenerationRequest

from ..entry.answers import json_answer
from ..seeing import dashboard
from . import batches, chats, completions, embeddings, files, health, jobs, models, ollama, reranking

if TYPE_CHECKING:
    from starlette.responses import Response

    from ..gateway import Call

ENDPOINT = "/openapi.json"
_REF = "#/components/schemas/{model}"
_TEXT: dict[str, Any] = {"type": "string"}
_EVENT: dict[str, Any] = {"type": "object", "properties": dict.fromkeys(("event", "data", "id"), _TEXT)}
"""One of a stream's, as who reads server-sent events has it."""
_NUMBER: dict[str, Any] = {"type": "number"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_REASONS = {
    400: "The request is not what it should be; `param` names the field",
    401: "A key is needed, or there is no such key",
    403: "The key has not the role, or the page that asks may not",
    404: "There is no such model, or no such job",
    405: "The endpoint has no such method",
    408: "The body did not come in time",
    409: "The job is over, or was cancelled, or there is another of its id",
    413: "The body is too large",
    415: "The body is compressed",
    422: "The Idempotency-Key came with another request before",
    429: "Too much waits, or too many requests of this key; see Retry-After",
    500: "The job failed",
    502: "The result cannot be read",
    503: "No worker serves this now, or the queue is away; see Retry-After",
    504: "There was no result in time",
}
_ALWAYS = (401, 403, 503)
_SENDING = (400, 404, 408, 413, 415, 429)
_SUBMITTING = (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 502, 503, 504)


async def document(call: Call) -> Response:
    return json_answer(openapi())


@cache
def openapi() -> dict[str, Any]:
    """The whole document, OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Impetus", "version": _version(), "license": {"name": "Apache-2.0"},
                 "description": "OpenAI's API before queues that Macs work."},
        "paths": _paths(),
        "components": {"schemas": _schemas(), "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }  # fmt: skip


def _version() -> str:
    try:
        return version("impetus-batch")
    except PackageNotFoundError:
        return "0"


def _paths() -> dict[str, Any]:
    return {
        embeddings.ENDPOINT: {"post": _posting("embeddings", "EmbeddingsBody", _ref("Embeddings"))},
        chats.ENDPOINT: {"post": _posting("chat", "ChatBody", _ref("Completion"), streams=True)},
        completions.ENDPOINT: {"post": _posting("completions", "CompletionsBody", _ref("Completion"), streams=True)},
        reranking.ENDPOINT: {"post": _posting("rerank", "RerankBody", _ref("Ranking"))},
        reranking.COHERES: {"post": _posting("rerank_of_cohere", "RerankBody", _ref("Ranking"))},
        ollama.EMBED: {"post": _posting("ollama_embed", "EmbedBody", _ref("OllamaEmbeddings"), error="OllamaError")},
        ollama.EMBEDDINGS: {
            "post": _posting("ollama_embeddings", "OldEmbedBody", _ref("OllamaEmbedding"), error="OllamaError")
        },
        files.ENDPOINT: {
            "post": _uploading(),
            "get": _getting("files", _ref("Files"), 400, 404, query=_listing(order={"enum": ["asc", "desc"]},
                                                                             purpose=_TEXT)),
        },
        files.FILE: {
            "get": _getting("file", _ref("File"), 404, named=True),
            "delete": _getting("delete_file", _ref("Deleted"), 404, named=True),
        },
        files.CONTENT: {
            "get": _operation(
                "file_content", {200: {"description": "The file", "content": {"application/octet-stream": {}}}},
                _errors(404), named=True,
            )
        },
        batches.ENDPOINT: {
            "post": _operation("create_batch", {200: _json("The batch", _ref("Batch"))}, _errors(*_SENDING))
            | _body("BatchBody"),
            "get": _getting("batches", _ref("Batches"), 400, 404, query=_listing()),
        },
        batches.BATCH: {"get": _getting("batch", _ref("Batch"), 404, named=True)},
        batches.CANCEL: {"post": _getting("cancel_batch", _ref("Batch"), 404, named=True)},
        models.ENDPOINT: {"get": _getting("models", _ref("Models"))},
        "/v1/models/{id}": {"get": _getting("model", _ref("Model"), 404, named=True)},
        jobs.ENDPOINT: {
            "get": _getting("job", _ref("Job"), 404, 502, named=True),
            "delete": _getting("cancel", _ref("Job"), 404, named=True, also={202: _json("It runs on for a moment",
                                                                                   _ref("Job"))}),
        },
        jobs.EVENTS: {"get": _operation("job_events", {200: _stream("What becomes of it")}, _errors(404), named=True)},
        jobs.RETRY: {"post": _getting("retry", _ref("Job"), 404, 409, named=True)},
        dashboard.EVENTS: {
            "get": _operation("fleet_events", {200: _stream("The fleet, about once a second")}, _errors())
        },
        dashboard.SUSPEND: {"post": _getting("suspend", _ref("Suspended"))},
        dashboard.RESUME: {"post": _getting("resume", _ref("Suspended"))},
        health.HEALTH: {"get": _getting("health", {"type": "object", "required": ["status"]})},
        health.READY: {
            "get": _operation(
                "ready",
                {200: _json("A worker serves", _ref("Ready")), 503: _json("None does", _ref("Ready"))},
                _errors(400, but=503),
            ) | {"parameters": [{"name": "role", "in": "query", "schema": {"enum": list(contract.ROLE_QUEUES)}}]}
        },
        health.METRICS: {
            "get": _operation("metrics", {200: {"description": "For Prometheus", "content": {"text/plain": {}}}},
                              _errors())
        },
    }  # fmt: skip


def _posting(
    name: str, body: str, answer: dict[str, Any], *, streams: bool = False, error: str = "Error"
) -> dict[str, Any]:
    answers = {200: _json("The answer", answer), 202: _json("Of `Prefer: respond-async`: a job", _ref("Accepted"))}
    if streams:
        answers[200]["content"]["text/event-stream"] = {"schema": _EVENT}
    headers = [
        {"name": "Prefer", "in": "header", "schema": _TEXT, "description": "`respond-async`: 202 and a job"},
        {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
         "description": "The same request with the same key is one job"},
        {"name": "X-Job-Id", "in": "header", "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
         "description": "The job's id; the same request with the same id is one job"},
    ]  # fmt: skip
    errors = {status: _error(status, error) for status in _SUBMITTING}
    return _operation(name, answers, errors) | _body(body) | {"parameters": headers}


def _body(name: str) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _ref(name)}}}}


def _uploading() -> dict[str, Any]:
    form = _object(
        {"file": {"type": "string", "format": "binary"}, "purpose": {"const": "batch"}},
        **{
            "expires_after[anchor]": {"const": "created_at"},
            "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": MAX_WINDOW_S},
        },
    )
    return _operation("upload", {200: _json("The file", _ref("File"))}, _errors(400, 408, 413, 429)) | {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    }


def _listing(**more: dict[str, Any]) -> list[dict[str, Any]]:
    known = {"after": _TEXT, "limit": {"type": "integer", "minimum": 1, "maximum": 100}, **more}
    return [{"name": name, "in": "query", "schema": schema} for name, schema in known.items()]


def _getting(
    name: str,
    answer: dict[str, Any],
    *more: int,
    named: bool = False,
    also: dict[int, Any] | None = None,
    query: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    made = _operation(name, {200: _json("The answer", answer), **(also or {})}, _errors(*more), named=named)
    return made | ({"parameters": query} if query is not None else {})


def _operation(name: str, answers: dict[int, Any], errors: dict[int, Any], *, named: bool = False) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": name,
        "responses": {str(status): said for status, said in sorted((errors | answers).items())},
    }
    if named:
        made["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": _TEXT}]
    return made


def _errors(*more: int, but: int | None = None) -> dict[int, Any]:
    return {status: _error(status) for status in (*_ALWAYS, *more) if status != but}


def _error(status: int, schema: str = "Error") -> dict[str, Any]:
    return _json(_REASONS[status], _ref(schema))


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _stream(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"text/event-stream": {"schema": _EVENT}}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": _REF.format(model=name)}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **optional}, "required": sorted(required)}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _schemas() -> dict[str, Any]:
    bodies = (
        EmbeddingsBody,
        CompletionsBody,
        RerankBody,
        ollama.EmbedBody,
        ollama.OldEmbedBody,
        batches.BatchBody,
        GenerationRequest,
    )
    _, made = models_json_schema([(each, "validation") for each in bodies], ref_template=_REF)
    asked: dict[str, Any] = made["$defs"]
    chat = asked.pop("GenerationRequest")
    chat["required"] = ["messages"]
    for name in ("prompt", "cancel_if_abandoned"):
        del chat["properties"][name]
    chat["description"] = "A conversation to answer, as in OpenAI's API."
    nullable = ("CompletionsBody", "Message", "ToolCall", "Function", "JsonSchema")
    for schema in (chat, *(asked[name] for name in nullable if name in asked)):
        _allow_nulls(schema)
    return {**asked, "ChatBody": chat, **_answers(), **_kept()}


def _allow_nulls(schema: dict[str, Any]) -> None:
    """Null says the same as nothing, but where something has to be said."""
    for name, said in schema["properties"].items():
        if name not in schema.get("required", ()):
            schema["properties"][name] = {"anyOf": [said, {"type": "null"}]}


def _answers() -> dict[str, Any]:
    nothing_or_text = {"type": ["string", "null"]}
    vector = {"anyOf": [_list(_NUMBER), _TEXT]}
    model = {"id": _TEXT, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": _TEXT}
    error = {"message": _TEXT, "type": _TEXT, "param": nothing_or_text, "code": nothing_or_text}
    job = {"id": _TEXT, "object": {"const": "job"}, "status": _TEXT}
    ready = {name: {"type": "boolean"} for name in ("ready", *contract.ROLE_QUEUES)}
    return {
        "Error": _object({"error": _object(error)}),
        "OllamaError": _object({"error": _TEXT}),
        "Embeddings": _object({
            "object": {"const": "list"},
            "model": _TEXT,
            "data": _list(_object({"object": {"const": "embedding"}, "index": _COUNT, "embedding": vector})),
            "usage": _object({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
        }),
        "Completion": _object({
            "id": _TEXT, "object": {"enum": ["chat.completion", "text_completion"]}, "created": _COUNT, "model": _TEXT,
            "choices": _list({"type": "object"}), "usage": {"type": "object"},
        }),
        "Ranking": _object({
            "id": _TEXT, "model": _TEXT, "usage": _object({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
            "results": _list(_object({"index": _COUNT, "relevance_score": _NUMBER}, document=_object({"text": _TEXT}))),
        }, meta={"type": "object"}),
        "OllamaEmbeddings": _object({"model": _TEXT, "embeddings": _list(_list(_NUMBER))}),
        "OllamaEmbedding": _object({"embedding": _list(_NUMBER)}),
        "Models": _object({"object": {"const": "list"}, "data": _list(_ref("Model"))}),
        "Model": _object(model),
        "Accepted": _object({**job, "url": _TEXT}),
        "Job": _object(job, result={}, error={}, cancelled={"type": "boolean"}),
        "Ready": _object(ready),
        "Suspended": _object({"suspended": {"type": "boolean"}}),
    }  # fmt: skip


def _kept() -> dict[str, Any]:
    """Files and batches."""
    file = {"id": _TEXT, "object": {"const": "file"}, "bytes": _COUNT, "filename": _TEXT, "purpose": _TEXT}
    page = {"object": {"const": "list"}, "has_more": {"type": "boolean"}}
    return {
        "File": _object(file),
        "Files": _object({**page, "data": _list(_ref("File"))}),
        "Deleted": _object({"id": _TEXT, "object": {"const": "file"}, "deleted": {"const": True}}),
        "Batch": _object({"id": _TEXT, "object": {"const": "batch"}, "status": _TEXT, "input_file_id": _TEXT}),
        "Batches": _object({**page, "data": _list(_ref("Batch"))}),
    }
