"""`impetus rerank`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from .. import contract
from ..contract import RerankRequest
from ..enqueueing.parsing import parse_request
from ..errors import InvalidRequestError
from ..handles import RerankHandle
from .jobs import enqueued, print_result, wait
from .settings.server import open_session, patience_option, redis_urls_option

if TYPE_CHECKING:
    from typing import BinaryIO


@click.command(short_help="Order documents by how relevant they are to a query.")
@click.argument("query")
@click.argument("file", type=click.File("rb"))
@click.option("--top-n", type=click.IntRange(1), metavar="N", help="Print the N most relevant ones. [default: all]")
@click.option("--model", metavar="NAME", help="The model. Default: the one the worker serves.")
@click.option("--max-tokens-per-doc", type=click.IntRange(1), metavar="N", help="Read so much of each document.")
@click.option("--no-truncate", is_flag=True, help="Fail where a document is longer than the model reads.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Give up waiting after this. The job goes on. Default: wait as long as it takes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole result: usage, and where it ran.")
@patience_option
@redis_urls_option
def rerank(
    query: str,
    file: BinaryIO,
    top_n: int | None,
    model: str | None,
    max_tokens_per_doc: int | None,
    no_truncate: bool,
    timeout_s: float | None,
    as_json: bool,
    patience_s: float,
    redis_urls: tuple[str, ...],
) -> None:
    """Order the documents in FILE, or `-` for standard input, by how relevant they are to QUERY, the best first.

    A document is a line of FILE, or where that begins with a bracket an item of its JSON list; where every line is a
    JSON object with a "text", it is that. Printed are score, the document's number from 0, and the document. A worker
    that reranks is one with a model for it: `impetus-worker run --rerank-model BAAI/bge-reranker-v2-m3`.

    \b
    Examples:
        impetus rerank "how are leases renewed?" notes.txt --top-n 3
        grep -h lease *.md | impetus rerank "how are leases renewed?" - --json
    """
    fields: dict[str, Any] = {
        "query": query,
        "documents": _documents(file),
        "top_n": top_n,
        "return_documents": True,
        "model": model,
        "max_tokens_per_doc": max_tokens_per_doc,
        "truncate": not no_truncate,
    }
    request = {name: value for name, value in fields.items() if value is not None}
    # Told before a server is started for it.
    parse_request(RerankRequest, request)
    worker_options = ["--roles", "rerank", *(["--rerank-model", model] if model else [])]
    with (
        open_session(redis_urls, patience_s, contract.RERANK_QUEUE, worker_options) as session,
        enqueued(session, "rerank", request, RerankHandle) as handle,
    ):
        answer = wait(handle, timeout_s, session.check)
    print_result(answer, as_json)


def _documents(file: BinaryIO) -> list[Any]:
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{file.name!r} is not UTF-8, from byte {error.start + 1} on") from None
    if not text.lstrip().startswith("["):
        lines = [line for line in text.splitlines() if line.strip()]
        return _texts(lines) or lines
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{file.name!r} begins with a bracket and is no JSON: {error}") from None
    return list(listed)


def _texts(lines: list[str]) -> list[str]:
    """Of JSONL, where every line is an object with a text; else nothing."""
    found: list[str] = []
    for line in lines:
        try:
            value = json.loads(line) if line.lstrip().startswith("{") else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or not isinstance(text := value.get("text"), str):
            return []
        found.append(text)
    return found
