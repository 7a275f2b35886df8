"""A web service that answers at once, and leaves the work to Macs.

pip install 'impetus-batch[files]' fastapi uvicorn
impetus-worker run                                  # on a Mac, or anywhere
uvicorn fastapi_service:app                         # IMPETUS_REDIS_URL names the server, if it is elsewhere

POST /nearest    {"query": "…", "texts": ["…", …]}  somebody waits: which of the texts is nearest
POST /summaries  {"text": "…"}                      nobody waits: 202, and where the summary will be
GET  /summaries/ID                                  the summary, or how far it is
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, Field

from impetus_producer import AsyncProducer, GenerationResult, JobFailedError, JobNotFoundError, ServerError

PATIENCE_S = 5.0
"""How long a request waits for a Redis that is away."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with AsyncProducer(result_ttl_s=24 * 3600, patience_s=PATIENCE_S) as producer:
        yield {"producer": producer}


app = FastAPI(lifespan=lifespan)


def the_producer(request: Request) -> AsyncProducer:
    producer: AsyncProducer = request.state.producer
    return producer


Producer = Annotated[AsyncProducer, Depends(the_producer)]


@app.exception_handler(ServerError)
async def server_is_away(request: Request, error: ServerError) -> Response:
    return Response(str(error), status_code=503, headers={"Retry-After": "5"})


class Question(BaseModel):
    query: str
    texts: Annotated[list[str], Field(min_length=1, max_length=1000)]


@app.post("/nearest")
async def nearest(question: Question, producer: Producer) -> dict[str, Any]:
    query = await producer.embed(question.query, input_type="query")
    texts = await producer.embed(question.texts, input_type="document")
    similarity = np.asarray((await texts.result(30)).vectors) @ np.asarray((await query.result(30)).vectors)[0]
    best = int(similarity.argmax())
    return {"text": question.texts[best], "similarity": round(float(similarity[best]), 4)}


class Article(BaseModel):
    text: str


@app.post("/summaries", status_code=202)
async def summarise(article: Article, producer: Producer) -> dict[str, str]:
    prompt = f"Summarise this in one sentence:\n\n{article.text}"
    handle = await producer.generate(messages=[{"role": "user", "content": prompt}], max_tokens=100, bulk=True)
    return {"id": handle.job_id, "url": f"/summaries/{handle.job_id}"}


@app.get("/summaries/{job_id}")
async def summary(job_id: str, producer: Producer) -> dict[str, str]:
    try:
        handle = await producer.handle(job_id)
        status = await handle.status()
        if status != "finished":
            return {"status": status}
        result = await handle.result(5)
    except JobNotFoundError:
        raise HTTPException(404, "there is no such summary, or not any more") from None
    except JobFailedError as error:
        raise HTTPException(502, str(error)) from None
    assert isinstance(result, GenerationResult)
    return {"status": status, "summary": result.text}
