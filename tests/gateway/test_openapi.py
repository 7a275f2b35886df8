"""The OpenAPI document says what is so: requests made of it, and against it, are answered as it says and never with a
fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from impetus_backends.simulated import FAULTS
from impetus_gateway.api.openapi import openapi
from impetus_gateway.app import make_app
from tests.patience import eventually

from .serving import Serving, is_ready, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.worker.conftest import Fleet

pytestmark = pytest.mark.system
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


ENDLESS = "/v1/fleet/events"
# Whoever comes after all workers are suspended has no answers.
OPERATIONS = sorted(
    ((path, method) for path, methods in openapi()["paths"].items() for method in methods),
    key=lambda each: (each[0] == "/v1/fleet/suspend", each),
)


@pytest.fixture(scope="module")
def served(fleet: Fleet) -> Iterator[Serving]:
    fleet.start("--rerank-backend", "simulated", roles="rerank")
    with serving(fleet.url) as running:
        eventually(lambda: is_ready(running, "embedding", "generation", "rerank"))
        yield running


def test_every_endpoint_is_in_the_document(served: Serving) -> None:
    app: Any = make_app(served.gateway)
    there = {
        (route.path.replace(":path", ""), method.lower()) for route in app.routes for method in route.methods - {"HEAD"}
    }
    pages = {("/openapi.json", "get"), ("/", "get"), ("/dashboard/{name}", "get")}
    assert there - pages == set(OPERATIONS)
    assert served.client.get("/openapi.json").json() == openapi()


def _asks_for_no_fault(case: Any) -> bool:
    """Hypothesis draws strings of our sources too: also those for which the simulated device fails as it should."""
    return not any(fault in str(case.body) for fault in FAULTS)


@pytest.mark.parametrize(("path", "method"), [each for each in OPERATIONS if each[0] != ENDLESS])
def test_no_request_of_the_documents_meets_a_fault(served: Serving, path: str, method: str) -> None:
    schema = schemathesis.openapi.from_dict(openapi())
    operation = schema[path][method.upper()]
    modes = [GenerationMode.POSITIVE]
    if "requestBody" in openapi()["paths"][path][method]:  # else there is nothing in it that could be wrong
        modes.append(GenerationMode.NEGATIVE)
    for mode in modes:

        @given(case=operation.as_strategy(generation_mode=mode).filter(_asks_for_no_fault))
        @settings(max_examples=15, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        def ask(case: Any) -> None:
            case.call_and_validate(base_url=served.url, checks=CHECKS, timeout=30)

        ask()
    if path == "/v1/fleet/suspend":
        assert served.client.post("/v1/fleet/resume").status_code == 200
        eventually(lambda: is_ready(served, "embedding", "generation", "rerank"))
