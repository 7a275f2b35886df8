"""What the gateway does with requests: whose they are, how much it takes, and what becomes of their jobs."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from impetus_producer import contract
from tests.patience import eventually

from .serving import Serving, is_ready, serving

if TYPE_CHECKING:
    from tests.worker.conftest import Fleet

pytestmark = pytest.mark.system
EMBEDDINGS, CHAT, JOBS = "/v1/embeddings", "/v1/chat/completions", "/v1/jobs"
LATER = {"Prefer": "respond-async"}


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Go on."}], **more}


def error_of(response: httpx.Response) -> tuple[int, str | None, str | None]:
    said = response.json()["error"]
    assert said["message"]
    return response.status_code, said["code"], said["param"]


def events_of(response: httpx.Response) -> list[tuple[str, Any]]:
    """Name and data of each event."""
    found = []
    for block in "".join(response.iter_text()).split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            found.append((fields.get("event", ""), json.loads(fields["data"])))
    return found


@pytest.fixture(scope="module")
def worker_options() -> tuple[str, ...]:
    """Slow enough that a generation is there to be met: some seconds."""
    return ("--simulated-a-ms", "60")


def running_jobs(served: Serving, queue: str = "generation") -> set[str]:
    running: Any = served.producer.connection.zrange(f"rq:wip:{queue}", 0, -1)
    return {key.decode().partition(":")[0] for key in running}


# ------------------------------------------------------------------------------------------------ jobs


def test_a_job_of_respond_async_is_looked_for_at_its_place(served: Serving) -> None:
    accepted = served.client.post(EMBEDDINGS, json={"input": ["a", "b"]}, headers=LATER)
    assert accepted.status_code == 202
    assert accepted.headers["Preference-Applied"] == "respond-async"
    place = accepted.headers["Location"]
    job = eventually(lambda: (said := served.client.get(place).json())["status"] == "finished" and said)
    assert [len(each["embedding"]) for each in job["result"]["data"]] == [384, 384]
    assert served.producer.handle(job["id"]).status() == "finished"
    assert job["queue"] == contract.EMBEDDING_BULK_QUEUE
    assert job["endpoint"] == EMBEDDINGS


def test_a_jobs_events_tell_its_text_and_its_result(served: Serving) -> None:
    job = served.client.post(CHAT, json=chat(stream=True), headers=LATER).json()
    with served.client.stream("GET", f"{JOBS}/{job['id']}/events") as response:
        events = events_of(response)
    names = [name for name, _ in events]
    assert names[0] == "status"
    assert names[-1] == "result"
    text = "".join(
        choice["delta"].get("content", "") for name, said in events if name == "chunk" for choice in said["choices"]
    )
    assert text == events[-1][1]["result"]["choices"][0]["message"]["content"]
    assert text.startswith("[simulated]")


def test_who_asks_for_the_head_of_a_stream_is_not_kept(served: Serving) -> None:
    job = served.client.post(CHAT, json=chat(ignore_eos=True, max_tokens=5000), headers=LATER).json()
    assert served.client.head(f"{job['url']}/events").headers["Content-Type"].startswith("text/event-stream")
    assert served.client.head("/v1/fleet/events").status_code == 200
    served.client.delete(job["url"])


def test_a_job_is_cancelled_by_its_id(served: Serving) -> None:
    job = served.client.post(CHAT, json=chat(ignore_eos=True, max_tokens=5000), headers=LATER).json()
    eventually(lambda: served.status_of(job["id"]) == "started")
    assert served.client.delete(f"{JOBS}/{job['id']}").json()["cancelled"] is True
    shown = served.client.get(f"{JOBS}/{job['id']}").json()
    assert shown["status"] == "cancelled"
    assert served.client.delete(f"{JOBS}/{job['id']}").json()["cancelled"] is False


def test_a_job_that_failed_says_why_and_is_tried_again_once(served: Serving) -> None:
    job = served.client.post(EMBEDDINGS, json={"input": "x", "dimensions": 5000}, headers=LATER).json()
    shown = eventually(lambda: (s := served.client.get(job["url"]).json())["status"] == "failed" and s)
    assert shown["error"]["param"] == "dimensions"
    again = served.client.post(f"{job['url']}/retry")
    assert again.json()["status"] == "queued"
    eventually(lambda: served.client.get(job["url"]).json()["status"] == "failed")
    done = served.client.post(EMBEDDINGS, json={"input": "x"}, headers=LATER).json()
    eventually(lambda: served.client.get(done["url"]).json()["status"] == "finished")
    assert error_of(served.client.post(f"{done['url']}/retry"))[:2] == (409, "not_failed")
    assert error_of(served.client.post(f"{JOBS}/none/retry"))[:2] == (404, "job_not_found")


def test_one_key_of_idempotency_is_one_job_however_often_it_is_sent(served: Serving) -> None:
    keyed = {"Idempotency-Key": "once"}
    first = served.client.post(CHAT, json=chat(seed=1), headers=keyed)
    second = served.client.post(CHAT, json=chat(seed=1), headers=keyed)
    assert first.headers["X-Job-Id"] == second.headers["X-Job-Id"]
    assert first.json()["choices"] == second.json()["choices"]
    other = served.client.post(CHAT, json=chat(seed=2), headers=keyed)
    assert error_of(other) == (422, "idempotency_key_reused", "Idempotency-Key")
    # Of another endpoint it is another key.
    assert served.client.post(EMBEDDINGS, json={"input": "x"}, headers=keyed).status_code == 200
    for bad in ("", "a" * 256, "with space"):
        answer = served.client.post(EMBEDDINGS, json={"input": "x"}, headers={"Idempotency-Key": bad})
        assert error_of(answer)[0] == 400


def test_a_job_has_the_id_that_its_caller_chose_and_is_one_however_often_it_is_sent(served: Serving) -> None:
    chosen = {"X-Job-Id": "nightly_2026-11-27"}
    later = served.client.post(CHAT, json=chat(seed=1), headers=chosen | LATER)
    assert (later.status_code, later.headers["Location"]) == (202, f"{JOBS}/nightly_2026-11-27")
    answers = [served.client.post(CHAT, json=chat(seed=1), headers=chosen) for _ in range(2)]
    assert {answer.headers["X-Job-Id"] for answer in answers} == {"nightly_2026-11-27"}
    assert answers[0].json()["choices"] == answers[1].json()["choices"]
    assert served.client.get(f"{JOBS}/nightly_2026-11-27").json()["status"] == "finished"
    taken = (409, "job_id_taken", "X-Job-Id")
    assert error_of(served.client.post(CHAT, json=chat(seed=2), headers=chosen)) == taken
    assert error_of(served.client.post(EMBEDDINGS, json={"input": "x"}, headers=chosen)) == taken
    others = served.producer.embed("somebody else's", bulk=True).job_id
    assert error_of(served.client.post(CHAT, json=chat(), headers={"X-Job-Id": others})) == taken
    for bad in ("", "a" * 65, "with space", "a/b", "a:b"):
        answer = served.client.post(EMBEDDINGS, json={"input": "x"}, headers={"X-Job-Id": bad})
        assert error_of(answer) == (400, "bad_header", "X-Job-Id")
    both = {"X-Job-Id": "a", "Idempotency-Key": "a"}
    assert error_of(served.client.post(EMBEDDINGS, json={"input": "x"}, headers=both))[0] == 400


def test_several_prompts_of_one_key_are_the_same_jobs_again(served: Serving) -> None:
    keyed = {"Idempotency-Key": "several"}
    body: dict[str, Any] = {"prompt": ["a", "b"], "max_tokens": 3}
    first, second = (served.client.post("/v1/completions", json=body, headers=keyed) for _ in range(2))
    job_ids = first.headers["X-Job-Id"].split(", ")
    assert len(set(job_ids)) == 2
    assert first.headers["X-Job-Id"] == second.headers["X-Job-Id"]
    more = served.client.post("/v1/completions", json=body | {"prompt": ["a", "b", "c"]}, headers=keyed)
    assert error_of(more)[:2] == (422, "idempotency_key_reused")


def test_a_trace_goes_along_with_its_job(served: Serving) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    job = served.client.post(EMBEDDINGS, json={"input": "x"}, headers=LATER | {"traceparent": trace}).json()
    untold = served.client.post(EMBEDDINGS, json={"input": "x"}, headers=LATER | {"traceparent": "x" * 5000}).json()
    metas = [
        json.loads(served.producer.connection.hget(f"rq:job:{each['id']}", "meta") or b"") for each in (job, untold)
    ]
    assert [meta.get("traceparent") for meta in metas] == [trace, None]


# ------------------------------------------------------------------------------------------------ clients that leave


def test_who_hangs_up_has_his_stream_stopped(served: Serving) -> None:
    with served.client.stream("POST", CHAT, json=chat(stream=True, ignore_eos=True, max_tokens=5000)) as response:
        next(response.iter_lines())
        job_id = response.headers["X-Job-Id"]
        assert served.status_of(job_id) == "started"
    assert eventually(lambda: served.status_of(job_id) == "stopped")


def test_who_hangs_up_has_all_that_his_request_took_stopped(served: Serving) -> None:
    body = {"prompt": ["a", "b", "c"], "stream": True, "ignore_eos": True, "max_tokens": 5000}
    with served.client.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())
        job_ids = response.headers["X-Job-Id"].split(", ")
    eventually(lambda: [served.status_of(job_id) for job_id in job_ids] == ["stopped"] * 3)


@pytest.mark.parametrize("which", [min, max])  # one of them is waited for first
def test_where_one_of_several_prompts_fails_the_others_are_not_gone_on_with(served: Serving, which: Any) -> None:
    body = {"prompt": ["a", "b"], "ignore_eos": True, "max_tokens": 5000}
    before = running_jobs(served)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(served.post, "/v1/completions", body)
        eventually(lambda: len(running_jobs(served) - before) == 2)
        served.producer.handle(which(running_jobs(served) - before)).cancel()
        assert error_of(asked.result(60))[:2] == (409, "job_cancelled")
    eventually(lambda: running_jobs(served) <= before)


def test_who_hangs_up_before_the_answer_has_his_job_withdrawn(served: Serving) -> None:
    before = running_jobs(served)
    with pytest.raises(httpx.ReadTimeout):
        served.client.post(CHAT, json=chat(ignore_eos=True, max_tokens=5000), timeout=1.5)
    eventually(lambda: running_jobs(served) <= before)


def test_a_job_that_others_may_ask_for_again_outlives_who_hung_up(served: Serving) -> None:
    keyed = {"Idempotency-Key": "come-back"}
    body = chat(stream=True, seed=3)
    with served.client.stream("POST", CHAT, json=body, headers=keyed) as response:
        next(response.iter_lines())
        job_id = response.headers["X-Job-Id"]
    again = served.client.post(CHAT, json=body, headers=keyed)
    assert again.headers["X-Job-Id"] == job_id
    assert again.text.rstrip().endswith("data: [DONE]")


def test_what_is_streamed_at_the_end_of_the_gateway_is_ended_first(fleet: Fleet) -> None:
    with (
        serving(fleet.url) as leaving,
        leaving.client.stream("POST", CHAT, json=chat(stream=True)) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        leaving.drain()
        assert [line for line in lines if line][-1] == "data: [DONE]"
        leaving.thread.join(20)
        assert not leaving.thread.is_alive()


def test_what_takes_too_long_is_given_up(fleet: Fleet) -> None:
    with serving(fleet.url, request_timeout_s=0.5) as hasty:
        eventually(lambda: is_ready(hasty, "generation"))
        answer = hasty.post(CHAT, chat(ignore_eos=True, max_tokens=5000))
        assert error_of(answer)[:2] == (504, "timeout")
        eventually(lambda: not running_jobs(hasty))


# ------------------------------------------------------------------------------------------------ limits


def test_a_backlog_is_refused_with_when_to_come_again_and_what_runs_runs_on(served: Serving, fleet: Fleet) -> None:
    long: dict[str, Any] = {"ignore_eos": True, "max_tokens": 5000}
    blockers = [served.producer.generate("Go on.", **long) for _ in range(16)]
    eventually(lambda: running_jobs(served) >= {each.job_id for each in blockers[:14]})
    # More than wait too long, also where the worker holds some in line for its next places.
    blockers += [served.producer.generate("Go on.", **long) for _ in range(10)]
    try:
        with serving(fleet.url, max_backlog_jobs=5) as small, serving(fleet.url, max_wait_s=0.05) as impatient:
            eventually(lambda: (impatient.gateway.watch.queue("generation").oldest_s or 0) > 0.05)
            for gateway in (small, impatient):
                refused = gateway.post(CHAT, chat())
                assert error_of(refused)[:2] == (429, "backlog")
                assert int(refused.headers["Retry-After"]) >= 1
            assert {small.post(CHAT, chat()).status_code for _ in range(100)} == {429}
            # Another lane is none of its business.
            assert small.post(EMBEDDINGS, {"input": "x"}).status_code == 200
        assert all(served.status_of(each.job_id) == "started" for each in blockers[:14])
    finally:
        for each in blockers:
            each.cancel()


def test_while_workers_are_suspended_who_waits_is_refused_and_who_does_not_is_taken(served: Serving) -> None:
    served.producer.connection.set("rq:suspended", 1)
    try:
        eventually(lambda: not is_ready(served, "embedding"))
        refused = served.post(EMBEDDINGS, {"input": "x"})
        assert error_of(refused)[:2] == (503, "suspended")
        assert int(refused.headers["Retry-After"]) > 0
        later = served.client.post(EMBEDDINGS, json={"input": "x"}, headers=LATER)
        assert later.status_code == 202
    finally:
        served.producer.connection.delete("rq:suspended")
    eventually(lambda: served.client.get(later.headers["Location"]).json()["status"] == "finished")
    eventually(lambda: is_ready(served, "embedding"))
    assert served.post(EMBEDDINGS, {"input": "x"}).status_code == 200
