"""What workers count, as Prometheus scrapes it."""

from __future__ import annotations

import os
import signal
import urllib.request
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from impetus_producer import Producer
from impetus_producer.contract import EMBED_FUNCTION
from tests.patience import eventually

from ...producer.servers.valkey import free_port

if TYPE_CHECKING:
    from ..conftest import Fleet

pytestmark = pytest.mark.system


def scrape(port: int) -> dict[str, float]:
    """Each sample by its name and labels, as `name{label=value}`."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            f"{each.name}{{{','.join(f'{key}={value}' for key, value in sorted(each.labels.items()))}}}": each.value
            for family in families
            for each in family.samples
        }


def test_the_work_of_both_roles_is_counted_and_what_a_dead_worker_counted_stays(fleet: Fleet) -> None:
    port = free_port()
    worker = fleet.start("--metrics-port", str(port), "--max-wait-ms", "0", roles="embedding,generation")
    producer = Producer(fleet.url)
    for bulk in (True, False):
        assert producer.embed(["three words here", "one"], bulk=bulk).result(60)
    made = producer.generate(prompt="Say something.", max_tokens=5).result(60)
    refused = fleet.queue().enqueue(EMBED_FUNCTION, {"input": "x", "dimensions": -1})
    eventually(lambda: fleet.status(refused) == "failed")
    seen = scrape(port)
    for lane, result in (("bulk", "finished"), ("interactive", "finished"), ("interactive", "failed")):
        assert seen[f"impetus_worker_requests_total{{lane={lane},result={result},role=embedding}}"] == 1
    assert seen["impetus_worker_batch_texts_sum{}"] == 4
    assert seen["impetus_worker_prompt_tokens_total{role=embedding}"] > 4
    assert seen["impetus_worker_padding_tokens_total{}"] > 0
    assert seen["impetus_worker_device_seconds_total{role=embedding}"] > 0
    assert seen["impetus_worker_generation_tokens_total{}"] == made.usage.completion_tokens
    assert seen["impetus_worker_time_to_first_token_seconds_count{}"] == 1
    assert seen["impetus_worker_request_latency_seconds_count{role=generation}"] == 1
    eventually(lambda: scrape(port)["impetus_worker_num_requests_running{role=embedding}"] == 0)

    os.kill(fleet.worker_pid("embedding"), signal.SIGKILL)
    assert producer.embed(["one more"], bulk=True).result(60)
    seen = scrape(port)
    assert seen["impetus_worker_requests_total{lane=bulk,result=finished,role=embedding}"] == 2
    assert worker.stop() == 0


def test_an_engine_that_died_and_what_went_back_for_it_are_counted(fleet: Fleet) -> None:
    port = free_port()
    fleet.start("--metrics-port", str(port), "--simulated-a-ms", "2500")
    handles = [Producer(fleet.url).embed([f"text {number}"]) for number in range(3)]
    eventually(lambda: scrape(port).get("impetus_worker_num_requests_running{role=embedding}", 0) > 0)
    os.kill(fleet.engine_pid(), signal.SIGKILL)
    for handle in handles:
        assert handle.result(60)
    seen = scrape(port)
    assert seen["impetus_worker_engine_deaths_total{role=embedding}"] == 1
    assert seen["impetus_worker_requests_total{lane=interactive,result=finished,role=embedding}"] == 3


def test_a_port_that_is_taken_is_one_sentence_before_anything_starts(fleet: Fleet) -> None:
    port = free_port()
    fleet.start("--metrics-port", str(port))
    second = fleet.start("--metrics-port", str(port), wait=False)
    eventually(lambda: second.process.poll() is not None)
    assert f"metrics cannot be served at 127.0.0.1:{port}: Address already in use" in second.log
    assert "Traceback" not in second.log
