"""`POST /v1/rerank` and `/v2/rerank`, as Cohere and Jina have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from impetus_producer.bodies.reranking import COHERES as COHERES
from impetus_producer.bodies.reranking import ENDPOINT as ENDPOINT
from impetus_producer.bodies.reranking import RerankBody, ranking, rerank_payload
from impetus_producer.enqueueing.parsing import parse_request

from ..entry.answers import json_answer
from ..submitting import Order, accepted, reranked, submit, wants_no_wait

if TYPE_CHECKING:
    from starlette.responses import Response

    from ..gateway import Call


async def rerank(call: Call) -> Response:
    body = parse_request(RerankBody, call.json())
    job_id = await submit(call, Order("rerank", rerank_payload(body), ENDPOINT))
    if wants_no_wait(call):
        return accepted(job_id)
    return json_answer(ranking(await reranked(call, job_id), job_id), headers={"X-Job-Id": job_id})
