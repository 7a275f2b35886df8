"""Texts become the token rows of sentence-transformers, and a long text costs no more than the model reads of it."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from impetus_backends.embedding.config import read_config
from impetus_backends.embedding.tokens import TextEncoder
from impetus_backends.errors import ModelError, RequestError

from .conftest import FAMILIES, Recorded, small_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from impetus_backends.models import ModelFiles

MODELS = ("minilm", "bge", "e5", "roberta", "distilbert", *FAMILIES)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, minilm: ModelFiles) -> tuple[str, Path]:
    name: str = request.param
    return name, minilm.folder if name == "minilm" else small_model(name)


class CountingTokenizer:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.characters = 0

    def encode(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        return self._tokenizer.encode(text, **options)

    def encode_batch_fast(self, texts: list[str]) -> Any:
        self.characters += sum(map(len, texts))
        return self._tokenizer.encode_batch_fast(texts)


def test_token_rows_are_those_of_sentence_transformers(
    model: tuple[str, Path], texts: list[str], recorded: dict[str, Recorded]
) -> None:
    name, folder = model
    encoded = TextEncoder.load(folder).encode(texts)
    for text, ours, theirs in zip(texts, encoded, recorded[name].rows, strict=True):
        assert ours.ids.dtype == np.int32
        np.testing.assert_array_equal(ours.ids, theirs, err_msg=repr(text[:80]))


def pieces(seed: int) -> str:
    """A long text made of whatever may lie across a cut."""
    choose = random.Random(seed)
    kinds: tuple[Callable[[], str], ...] = (
        lambda: " " * choose.choice((1, 1, 1, 2, 7)),
        lambda: "".join(choose.choices("abcdefgh'", k=choose.randint(1, 12))),
        lambda: "q" * choose.randint(90, 110),
        lambda: choose.choice(("[MASK]", "[SEP]", "<mask>", "<pad>", "</s>", "don't", "it's")),
        lambda: "".join(choose.choices("敏捷的棕色狐狸", k=choose.randint(1, 9))),
        lambda: choose.choice(("🦊", "👩‍👩‍👧‍👦", "e\u0301", "\u0301", "ﬁ", "İ", "\u00b4", "\u200b", "\u0000")),
        lambda: choose.choice((".", ",", "--", "\n", "\t\n ", "\u3000", "3.14")),
    )
    spaces = choose.random() < 0.7
    return "".join(choose.choice(kinds if spaces else kinds[1:6])() for _ in range(1500))


def test_a_prefix_gives_exactly_the_row_of_the_whole_text(model: tuple[str, Path]) -> None:
    config = read_config(model[1])
    tokenizer = CountingTokenizer(config.transformer)
    encoders = {
        max_tokens: TextEncoder(tokenizer, replace(config.text, max_tokens=max_tokens, prompts=()))
        for max_tokens in (5, 24, config.text.max_tokens)
    }
    for seed in range(24):
        text = pieces(seed)
        whole = tokenizer.encode(text).ids
        for max_tokens, encoder in encoders.items():
            (row,) = encoder.encode([text])
            # Each of these tokenizers puts one token before a text and one after it.
            assert row.ids.tolist() == [*whole[: max_tokens - 1], whole[-1]], f"seed {seed}"
            assert row.truncated


@pytest.mark.parametrize("text", ["plain words " * 400_000, "敏捷的棕色狐狸" * 700_000, "no.space," * 500_000])
def test_a_text_of_megabytes_costs_only_what_the_model_reads(minilm: ModelFiles, text: str) -> None:
    counting = CountingTokenizer(minilm.folder)
    (row,) = TextEncoder(counting, read_config(minilm.folder).text).encode([text])
    assert row.truncated
    assert len(row.ids) == 256
    assert counting.characters < 20_000


def test_a_single_word_of_megabytes_is_still_one_unknown_token(minilm: ModelFiles) -> None:
    (row,) = TextEncoder.load(minilm.folder).encode(["x" * 1_000_000])
    assert row.ids.tolist() == [101, 100, 102]
    assert not row.truncated


def test_a_text_of_exactly_the_maximum_is_not_truncated(minilm: ModelFiles) -> None:
    encoder = TextEncoder.load(minilm.folder)
    fits, beyond = encoder.encode(["a " * 254, "a " * 255])
    assert (len(fits.ids), fits.truncated) == (256, False)
    assert (len(beyond.ids), beyond.truncated) == (256, True)


def test_prompts_come_from_the_files_by_input_type() -> None:
    def row(name: str, text: str, **options: Any) -> list[int]:
        ids: list[int] = TextEncoder.load(small_model(name)).encode([text], **options)[0].ids.tolist()
        return ids

    prefixed = row("bge", "Represent this sentence for searching relevant passages: fox")
    assert row("bge", "fox", input_type="query") == prefixed
    assert row("bge", "fox", input_type="document") == row("bge", "fox")
    assert row("e5", "fox", input_type="document") == row("e5", "passage: fox")
    # A default prompt is for texts of no stated type; one without a prompt of its own gets none.
    assert row("distilbert", "fox") == row("distilbert", "text: fox", input_type="query")


def test_a_text_that_is_not_unicode_is_refused_by_its_number(minilm: ModelFiles) -> None:
    encoder = TextEncoder.load(minilm.folder)
    for text in ("half \ud83e", "long \ud83e" * 5000):
        with pytest.raises(RequestError, match="text 1 is not valid Unicode"):
            encoder.encode(["fine", text, "fine"])


def test_no_texts_make_no_rows(minilm: ModelFiles) -> None:
    assert TextEncoder.load(minilm.folder).encode([]) == []


def test_a_broken_tokenizer_is_a_model_error(tmp_path: Path) -> None:
    folder = shutil.copytree(small_model("bge"), tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        TextEncoder.load(folder)
