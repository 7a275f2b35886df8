"""Inputs of batches, and what came of them."""

from __future__ import annotations

import base64
import json
import struct
from collections import Counter
from typing import TYPE_CHECKING, Any

from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

EMBEDDINGS, CHAT, COMPLETIONS = "/v1/embeddings", "/v1/chat/completions", "/v1/completions"
RERANK = "/v1/rerank"
_TYPES: dict[str, Any] = {
    "list": CreateEmbeddingResponse,
    "chat.completion": ChatCompletion,
    "text_completion": Completion,
}


def embedding(custom_id: str, text: Any = "a text", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": EMBEDDINGS, "body": {"input": text, **body}}


def chat(custom_id: str, question: str = "Why?", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": {"messages": messages, **body}}


def completion(custom_id: str, prompt: Any = "Once", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": COMPLETIONS, "body": {"prompt": prompt, **body}}


def ranking(custom_id: str, documents: Any, **body: Any) -> dict[str, Any]:
    body = {"query": "tea", "documents": documents, **body}
    return {"custom_id": custom_id, "method": "POST", "url": RERANK, "body": body}


def jsonl(lines: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def answers(path: Path) -> dict[str, Any]:
    """Each answer by `custom_id`, as the openai package reads it."""
    found = {}
    for line in read(path):
        assert line["id"].startswith("batch_req_")
        assert line["error"] is None
        assert line["response"]["status_code"] == 200
        assert line["response"]["request_id"]
        body = line["response"]["body"]
        for each in body["data"] if body["object"] == "list" else ():
            if isinstance(each["embedding"], str):
                raw = base64.b64decode(each["embedding"])
                each["embedding"] = list(struct.unpack(f"<{len(raw) // 4}f", raw))
        found[line["custom_id"]] = _TYPES[body["object"]].model_validate(body)
    return found


def counted(*paths: Path) -> Counter[str]:
    """How often each `custom_id` is in these files."""
    return Counter(line["custom_id"] for path in paths for line in read(path))
