"""The OpenAPI document, made of the models that requests are held against."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from impetus_producer import contract
from impetus_producer.contract import GenerationRequest

from . import chats, completions, embeddings, health, jobs, models, ollama, reranking
from .answers import json_answer

if TYPE_CHECKING:
    from starlette.responses import Response

    from .gateway import Call

ENDPOINT = "/openapi.json"
_REF = "#/components/schemas/{model}"
_TEXT: dict[str, Any] = {"type": "string"}
_NUMBER: dict[str, Any] = {"type": "number"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_REASONS = {
    400: "The request is not what it should be; `param` names the field",
    401: "A key is needed, or there is no such key",
    403: "The key has not the role, or the page that asks may not",
    404: "There is no such model, or no such job",
    405: "The endpoint has no such method",
    408: "The body did not come in time",
    409: "The job is over, or was cancelled",
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
        ollama.EMBED: {"post": _posting("ollama_embed", "EmbedBody", _ref("OllamaEmbeddings"), error="OllamaError")},
        ollama.EMBEDDINGS: {
            "post": _posting("ollama_embeddings", "OldEmbedBody", _ref("OllamaEmbedding"), error="OllamaError")
        },
        models.ENDPOINT: {"get": _getting("models", _ref("Models"))},
        "/v1/models/{id}": {"get": _getting("model", _ref("Model"), 404, named=True)},
        jobs.ENDPOINT: {
            "get": _getting("job", _ref("Job"), 404, 502, named=True),
            "delete": _getting("cancel", _ref("Job"), 404, named=True, also={202: _json("It runs on for a moment",
                                                                                   _ref("Job"))}),
        },
        jobs.EVENTS: {"get": _operation("job_events", {200: _stream("What becomes of it")}, _errors(404), named=True)},
        jobs.RETRY: {"post": _getting("retry", _ref("Job"), 404, 409, named=True)},
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
        answers[200]["content"]["text/event-stream"] = {"schema": _TEXT}
    headers = [
        {"name": "Prefer", "in": "header", "schema": _TEXT, "description": "`respond-async`: 202 and a job"},
        {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
         "description": "The same request with the same key is one job"},
    ]  # fmt: skip
    return _operation(name, answers, {status: _error(status, error) for status in _SUBMITTING}) | {
        "parameters": headers,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(body)}}},
    }


def _getting(
    name: str, answer: dict[str, Any], *more: int, named: bool = False, also: dict[int, Any] | None = None
) -> dict[str, Any]:
    return _operation(name, {200: _json("The answer", answer), **(also or {})}, _errors(*more), named=named)


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
    return {"description": description, "content": {"text/event-stream": {"schema": _TEXT}}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": _REF.format(model=name)}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **optional}, "required": sorted(required)}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _schemas() -> dict[str, Any]:
    bodies = (
        embeddings.EmbeddingsBody,
        completions.CompletionsBody,
        reranking.RerankBody,
        ollama.EmbedBody,
        ollama.OldEmbedBody,
    )
    _, made = models_json_schema([(each, "validation") for each in (*bodies, GenerationRequest)], ref_template=_REF)
    asked: dict[str, Any] = made["$defs"]
    chat = asked.pop("GenerationRequest")
    chat["required"] = ["messages"]
    for name in ("prompt", "cancel_if_abandoned"):
        del chat["properties"][name]
    chat["description"] = "A conversation to answer, as in OpenAI's API."
    nullable = ("CompletionsBody", "Message", "ToolCall", "Function", "JsonSchema")
    for schema in (chat, *(asked[name] for name in nullable if name in asked)):
        _allow_nulls(schema)
    return {**asked, "ChatBody": chat, **_answers()}


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
    }  # fmt: skip
