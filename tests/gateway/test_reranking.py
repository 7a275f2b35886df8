"""`/v1/rerank`, in the words of Cohere and Jina."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.patience import eventually

from .serving import Serving, is_ready, serving, workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import RedisServer

pytestmark = pytest.mark.system
BODY = {"query": "fox", "documents": ["a lazy dog", {"text": "a quick fox"}, "a"], "model": "simulated"}


@pytest.fixture(scope="module")
def reranking(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("workers")
    with (
        workers(redis_server.url, folder, "--rerank-backend", "simulated", roles="rerank"),
        serving(redis_server.url) as running,
    ):
        eventually(lambda: is_ready(running, "rerank"))
        yield running


def test_documents_come_back_by_their_relevance_with_ids_usage_and_texts_where_asked(reranking: Serving) -> None:
    answer = reranking.post("/v1/rerank", BODY | {"top_n": 2, "return_documents": True})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["id"] == answer.headers["x-job-id"]
    assert said["model"] == "simulated"
    assert said["usage"]["total_tokens"] == said["meta"]["tokens"]["input_tokens"] > 0
    scores = [each["relevance_score"] for each in said["results"]]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    texts = ["a lazy dog", "a quick fox", "a"]
    assert [each["document"]["text"] for each in said["results"]] == [texts[each["index"]] for each in said["results"]]
    bare = reranking.post("/v1/rerank", BODY).json()["results"]
    assert all(set(each) == {"index", "relevance_score"} for each in bare)


def test_coheres_client_asks_at_a_path_of_its_own_and_others_write_what_is_done_anyway(reranking: Serving) -> None:
    expected = reranking.post("/v1/rerank", BODY).json()["results"]
    asked = BODY | {"max_tokens_per_doc": 4096, "priority": 0, "truncation": True}
    assert reranking.post("/v2/rerank", asked).json()["results"] == expected
    assert reranking.post("/v2/rerank", asked | {"priority": 1}).json()["error"]["param"] == "priority"


def test_what_a_worker_refuses_names_the_field(reranking: Serving) -> None:
    answer = reranking.post("/v1/rerank", BODY | {"documents": ["fox " * 9999], "truncate": False})
    said = answer.json()["error"]
    assert (answer.status_code, said["param"], said["code"]) == (400, "documents", "invalid_value"), said


def test_a_ranking_that_nobody_waits_for_is_a_job_and_its_model_is_listed(reranking: Serving) -> None:
    accepted = reranking.post("/v1/rerank", BODY, prefer="respond-async")
    assert accepted.status_code == 202
    url = accepted.headers["location"]

    def finished() -> dict[str, Any]:
        job: dict[str, Any] = reranking.client.get(url).json()
        return job if job["status"] == "finished" else {}

    job = eventually(finished)
    assert (job["queue"], job["endpoint"]) == ("rerank-bulk", "/v1/rerank")
    assert {each["index"] for each in job["result"]["results"]} == {0, 1, 2}
    assert "result" in reranking.client.get(f"{url}/events").text
    assert {"simulated"} <= {each["id"] for each in reranking.client.get("/v1/models").json()["data"]}


def test_rankings_of_a_batch_are_those_of_single_requests(reranking: Serving) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/rerank", "body": BODY}
    upload = {"file": json.dumps(line).encode()}
    file = reranking.client.post("/v1/files", data={"purpose": "batch"}, files=upload).json()
    asked = {"input_file_id": file["id"], "endpoint": "/v1/rerank", "completion_window": "24h"}
    batch = reranking.post("/v1/batches", asked).json()

    def output() -> Any:
        return reranking.client.get(f"/v1/batches/{batch['id']}").json()["output_file_id"]

    (answer,) = reranking.client.get(f"/v1/files/{eventually(output)}/content").text.splitlines()
    single = reranking.post("/v1/rerank", BODY).json()
    assert json.loads(answer)["response"]["body"]["results"] == single["results"]


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"documents": []}, 400, "documents: the list is empty"),
        ({"documents": ["a"] * 2049}, 400, "more than the 2048"),
        ({"documents": [{"text": "a", "title": "b"}]}, 400, "an object has a text and nothing else"),
        ({"query": None}, 400, "query"),
        ({"top_n": 0}, 400, "top_n"),
        ({"rank_fields": ["text"]}, 400, "rank_fields: there is no such field"),
        ({"model": "another"}, 404, "there is no model 'another'"),
    ],
)
def test_a_bad_request_is_answered_with_what_is_wrong(
    change: dict[str, Any], status: int, sentence: str, reranking: Serving
) -> None:
    answer = reranking.post("/v1/rerank", BODY | change)
    assert answer.status_code == status
    assert sentence in answer.json()["error"]["message"]


def test_where_nobody_reranks_it_says_so(redis_url: str) -> None:
    # In the other database are the workers of this file's other tests, which come back after a flush.
    with serving(redis_url.removesuffix("/0") + "/1") as alone:
        answer = alone.post("/v1/rerank", BODY)
        assert answer.status_code == 503
        assert "no worker serves rerankings now" in answer.json()["error"]["message"]
        assert alone.client.get("/ready").json() == {
            "ready": False, "embedding": False, "generation": False, "rerank": False,
        }  # fmt: skip
