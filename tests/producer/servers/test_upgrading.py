"""Services and workers of different versions on one server: what 0.1.0 wrote is read, and what later ones add passes.

tests/data/wire/0.1.0.json is what that version wrote. It is never changed: a version that writes otherwise has a file
of its own beside it, and reads both.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from impetus_producer import contract
from impetus_producer.contract import WorkerRecord
from impetus_producer.enqueueing.jobs import read_result
from tests.paths import DATA

WRITTEN = sorted((DATA / "wire").glob("*.json"))
CASES = [
    pytest.param(name, said, id=f"{file.stem} {name}")
    for file in WRITTEN
    for name, said in json.loads(file.read_text()).items()
]
LATER = {"of_a_later_version": {"nobody": ["knows", "this", 1]}}


def with_more(said: Any) -> Any:
    """A field of a later version in every object, and in those inside it."""
    if isinstance(said, list):
        return [with_more(each) for each in said]
    if isinstance(said, dict):
        return {**{key: with_more(each) for key, each in said.items()}, **LATER}
    return said


@pytest.mark.parametrize(("name", "said"), CASES)
def test_what_an_earlier_version_wrote_is_read_with_nothing_lost(name: str, said: Any) -> None:
    kind = getattr(contract, name)
    read = kind.model_validate(said, strict=False)
    again = json.loads(read.model_dump_json(exclude_unset=True))
    assert again == said


@pytest.mark.parametrize(("name", "said"), [case for case in CASES if str(case.values[0]).endswith("Result")])
def test_a_service_reads_results_of_a_worker_that_says_more_than_it_knows(name: str, said: Any) -> None:
    kind = getattr(contract, name)
    sampling = said.pop("sampling", None)  # names of options, whatever they are
    more = with_more(said)
    if sampling is not None:
        said["sampling"] = more["sampling"] = sampling
    assert read_result("job", kind, more) == read_result("job", kind, said)


def test_a_worker_reads_records_of_workers_that_say_more_than_it_knows() -> None:
    said = next(case.values[1] for case in CASES if case.values[0] == "WorkerRecord")
    assert WorkerRecord.model_validate_json(json.dumps(with_more(said))) == WorkerRecord.model_validate_json(
        json.dumps(said)
    )


@pytest.mark.parametrize(("name", "said"), [case for case in CASES if str(case.values[0]).endswith("Request")])
def test_a_worker_refuses_by_name_what_a_later_service_asks_and_it_cannot_do(name: str, said: Any) -> None:
    with pytest.raises(ValueError, match="of_a_later_version"):
        getattr(contract, name).model_validate({**said, **LATER})
