"""Prompts as sentence-transformers puts them before texts: by input type, by name, or a request's own."""

from __future__ import annotations

import json

import numpy as np
import pytest

from impetus_backends.embedding.devices.backends import make_backend
from impetus_backends.embedding.texts.tokens import TextEncoder
from impetus_backends.errors import RequestError
from tests.recordings import recorded

from ..conftest import Recorded, small_model

RECORDED = recorded("prompts")
PROMPTS: dict[str, str] = json.loads(str(RECORDED["prompts"]))


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("name", PROMPTS)
def test_vectors_with_a_prompt_of_their_own_are_those_of_sentence_transformers(
    name: str, device: str, texts: list[str]
) -> None:
    encoder = TextEncoder.load(small_model(name))
    backend = make_backend(device, small_model(name))
    backend.load()
    rows = [text.ids for text in encoder.encode(texts, prompt=PROMPTS[name])]
    assert np.abs(backend.embed(rows) - RECORDED[name]).max() < 1e-5


@pytest.mark.parametrize("name", ["electra", "nomic", "gemma", "qwen3", "bge", "e5"])
def test_vectors_by_the_name_of_a_prompt_are_those_of_sentence_transformers(
    name: str, texts: list[str], recorded: dict[str, Recorded]
) -> None:
    encoder = TextEncoder.load(small_model(name))
    backend = make_backend("numpy", small_model(name))
    backend.load()
    named = recorded[name].vectors
    assert len(named) > 1
    for prompt_name in set(named) - {"plain"}:
        rows = [text.ids for text in encoder.encode(texts, prompt=encoder.prompt(name=prompt_name))]
        assert np.abs(backend.embed(rows) - named[prompt_name]).max() < 1e-5


def test_a_model_that_states_no_prompts_for_queries_and_documents_has_empty_ones_as_in_sentence_transformers() -> None:
    encoder = TextEncoder.load(small_model("distilbert"))
    assert (encoder.prompt(name="query"), encoder.prompt(name="document"), encoder.prompt()) == ("", "", "text: ")


def test_a_prompt_by_a_name_that_the_model_does_not_have_is_refused_with_those_that_it_has() -> None:
    encoder = TextEncoder.load(small_model("e5"))
    with pytest.raises(RequestError, match=r"^has no prompt named 'qeury'; it has 'query', 'document', 'passage'$"):
        encoder.prompt(name="qeury")
