"""Real language models through a real worker: known answers, streamed, kept to a schema, from a model asked by name."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
from jsonschema import validate
from scripts.models.make_tiny_model import make_tiny_model

from impetus_producer import InvalidRequestError, JobFailedError, Producer
from tests.paths import DATA

if TYPE_CHECKING:
    from pathlib import Path

    from ..conftest import Fleet

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(find_spec("mlx_lm") is None, reason="MLX is not installed (pip install 'impetus-batch[mlx]')"),
]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Zürich", "Łódź"]}, "people": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


def test_two_models_answer_by_name_stream_keep_to_a_schema_and_refuse_what_they_are_not(
    fleet: Fleet, tmp_path: Path
) -> None:
    other = make_tiny_model(tmp_path / "tiny-random")
    models = ("--generation-model", str(DATA / "models" / "tiny-says"), "--more-generation-models", str(other))
    fleet.start("--generation-backend", "mlx", *models, roles="generation")
    producer = Producer(fleet.url)
    pairs = (DATA / "questions.txt").read_text(encoding="utf-8").strip().split("\n\n")
    known = dict([line[3:] for line in pair.splitlines()] for pair in pairs)
    asked = {
        question: producer.generate(
            messages=[{"role": "user", "content": question}], temperature=0, stream=number % 2 == 0
        )
        for number, question in enumerate(known)
    }
    by_name = producer.generate("Hello", model="tiny-random", max_tokens=5, ignore_eos=True)
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    kept = [producer.generate("Hello", model=name, response_format=form) for name in ("tiny-says", "tiny-random")]
    refused = producer.generate("Hello", model="tiny-clever")
    hopeless = producer.generate(
        "Hello", response_format={"type": "json_schema", "json_schema": {"schema": {"not": {}}}}
    )

    assert {question: "".join(handle.stream(60)).strip() for question, handle in asked.items()} == known
    result = by_name.result(60)
    assert (result.model, result.finish_reason) == ("tiny-random", "length")
    assert "random weights" in str(result.provenance.note)
    for handle in kept:
        validate(json.loads(handle.result(60).text), SCHEMA)
    with pytest.raises(JobFailedError, match="serves tiny-says, tiny-random and not 'tiny-clever'"):
        refused.result(60)
    with pytest.raises(JobFailedError, match="JSON schema"):
        hopeless.result(60)
    with pytest.raises(InvalidRequestError, match="response_format"):
        producer.generate("Hello", response_format={"type": "json_schema"})
